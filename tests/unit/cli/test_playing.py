"""What `rllib evaluate` does around the episodes: threads, progress, files."""

from __future__ import annotations

import io
import os
import pathlib
from typing import Any

import pytest
import torch
from invoking import rllib
from rich.console import Console

from rllib_efficientzero.cli import console
from rllib_efficientzero.policy import Policy


def test_one_thread_plays(policy_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act, found = Policy.act, set()

    def watched(self: Policy, *arguments: Any, **settings: Any) -> Any:
        found.add(torch.get_num_threads())
        return act(self, *arguments, **settings)

    monkeypatch.setattr(Policy, "act", watched)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert rllib("evaluate", policy_dir, "--episodes", 1).exit_code == 0
    assert found == {1}


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_sees_how_far_it_is(
    policy_dir: pathlib.Path, is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "err", Console(file=written, force_terminal=is_terminal, color_system=None))
    done = rllib("evaluate", policy_dir, "--episodes", 2, "--out", "-")
    assert done.exit_code == 0, done.output
    assert ("0 of 2 episodes, 1 decisions" in written.getvalue()) is is_terminal
    assert done.stdout.startswith("{"), "stdout is the report's alone"
    if is_terminal:
        assert written.getvalue().endswith("\r\x1b[2K"), "and nothing of it stays"


def test_directories_of_results_are_made(policy_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    files = [tmp_path / kind / "new" / name for kind, name in (("a", "x.json"), ("b", "x.mp4"), ("c", "x.svg"))]
    out, video, tree = files
    given = ["--out", out, "--video", video, "--tree", f"step=1:{tree}"]
    done = rllib("evaluate", policy_dir, "--episodes", 1, *given)
    assert done.exit_code == 0, done.output
    assert all(file.stat().st_size for file in files)


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--out=file/x.json", "--out file/x.json: cannot be written: a file stands where its directory would"),
        ("--video=file/x.mp4", "--video file/x.mp4: cannot be written: a file stands where its directory would"),
        ("--tree=step=1:file/x.svg", "--tree file/x.svg: cannot be written: a file stands where its directory would"),
        ("--out=.", "--out .: cannot be written: it is a directory"),
        ("--out=kept.json", "--out kept.json: cannot be written: Permission denied"),
    ],
)
def test_nothing_is_played_for_files_that_cannot_be_written(
    policy_dir: pathlib.Path, option: str, complaint: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pathlib.Path("file").touch()
    pathlib.Path("kept.json").touch()
    # Root may write whatever its mode is.
    monkeypatch.setattr(os, "access", lambda file, mode: pathlib.Path(file).name != "kept.json")
    monkeypatch.setattr(Policy, "act", lambda *arguments, **settings: pytest.fail("it was played"))
    refused = rllib("evaluate", policy_dir, "--episodes", 1, option)
    assert refused.exit_code == 2
    assert complaint in refused.stderr


@pytest.mark.parametrize("verb", ["evaluate", "play"])
@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--device=gpu", "--device: no policy can be loaded onto 'gpu': there is no such device; write cpu or cuda"),
        ("--env=CartPol-v1", "--env: unknown environment 'CartPol-v1'; did you mean 'CartPole-v1'?"),
        ("--env=Acrobot-v1", "--env: 'Acrobot-v1' has observations of"),
    ],
)
def test_what_was_meant_is_named(policy_dir: pathlib.Path, verb: str, option: str, complaint: str) -> None:
    refused = rllib(verb, policy_dir, option)
    assert refused.exit_code == 2
    assert complaint in refused.stderr
