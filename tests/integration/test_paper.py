"""`rllib paper` as a user runs it: every experiment at the smoke budget to its end, again, and the report."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.long


def paper(directory: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rllib_efficientzero", "paper", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=1800, check=False
    )


@pytest.mark.timeout(3600)
def test_every_experiment_runs_to_its_end_and_is_reported(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    experiments = ["atari100k", "ablations", "decoder", "value-prefix", "value-targets"]
    run = paper(tmp_path, "run", *experiments, "--budget", "smoke", "--runs", "runs")
    assert run.returncode == 0, run.stdout + run.stderr
    scores = list(tmp_path.glob("runs/smoke/*/*/scores.json"))
    assert len(scores) == 6  # EfficientZero, MuZero, four ablations: shared by the experiments
    assert all(set(json.loads(file.read_text())["protocols"]) == {"standard", "sticky"} for file in scores)

    measured = json.loads((tmp_path / "runs/smoke/measurement_decoder/measurement.json").read_text())
    paths = [pathlib.Path(entry["path"]) for entry in measured["checkpoints"].values()]
    assert len(paths) == 2
    assert all((tmp_path / "runs" / path).is_dir() and not path.is_absolute() for path in paths)

    again = paper(tmp_path, "run", *experiments, "--budget", "smoke", "--runs", "runs")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "6 of 6 runs are finished" in again.stdout
    assert again.stdout.count("measured already") == 3

    report = paper(tmp_path, "report", "runs", "-o", "report")
    assert report.returncode == 0, report.stdout + report.stderr
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Nothing was left out." in text
    for heading in (
        "Table 1: Atari 100k",
        "Table 3",
        "Figure 8",
        "Figure 9",
        "Table 5",
        "Table 6",
        "Cost of every run",
    ):
        assert heading in text, heading
    assert "SMOKE" in text


@pytest.mark.timeout(1800)
def test_dmcontrol_runs_to_its_end(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("dm_control")
    run = paper(tmp_path, "run", "dmc100k", "--budget", "smoke", "--runs", "runs")
    assert run.returncode == 0, run.stdout + run.stderr
    (file,) = tmp_path.glob("runs/smoke/*/*/scores.json")
    assert len(json.loads(file.read_text())["protocols"]["standard"]["returns"]) == 2
