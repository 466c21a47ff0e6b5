"""Wrong experiment files: exit code 2, one message with file and line, no traceback, and ray is never imported."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import resource
import subprocess
import sys
from typing import Any

import pytest
import typer
from malformed import MALFORMED, Malformed

from rllib_efficientzero.cli.main import app

SECONDS = 1.5
"""Of CPU time, which other work on the machine does not stretch."""

# Runs every file through the command in one fresh process, in which nothing else could have imported ray.
DRIVER = """
import json, sys, time
from typer.testing import CliRunner
from rllib_efficientzero.cli.main import app

results = {}
for name, path in json.load(open(sys.argv[1])).items():
    start = time.process_time()
    result = CliRunner().invoke(app, ["train", "file", path])
    results[name] = {
        "exit_code": result.exit_code,
        "output": result.output,
        "seconds": time.process_time() - start,
        "ray": "ray" in sys.modules,
        "exception": None if isinstance(result.exception, SystemExit) else repr(result.exception),
    }
print(json.dumps(results))
"""


@dataclasses.dataclass
class Answer:
    exit_code: int
    output: str
    seconds: float
    ray: bool
    exception: str | None


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("malformed")


@pytest.fixture(scope="module")
def answers(directory: pathlib.Path) -> dict[str, Answer]:
    paths = {case.name: str(directory / f"{i}.yaml") for i, case in enumerate(MALFORMED)}
    for case in MALFORMED:
        pathlib.Path(paths[case.name]).write_text(case.text)
    (directory / "paths.json").write_text(json.dumps(paths))
    command = [sys.executable, "-c", DRIVER, str(directory / "paths.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return {name: Answer(**answer) for name, answer in json.loads(done.stdout).items()}


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case.name)
def test_answer_names_file_line_and_cure(case: Malformed, answers: dict[str, Answer], directory: pathlib.Path) -> None:
    answer = answers[case.name]
    path = str(directory / f"{MALFORMED.index(case)}.yaml")
    place = path if case.line is None else f"{path}:{case.line}: "
    assert answer.exit_code == 2, answer
    assert answer.exception is None
    assert answer.output.startswith(f"error: {place}")
    assert len(answer.output.splitlines()) == 1
    for word in case.words:
        assert word in answer.output
    assert "Traceback" not in answer.output
    assert not answer.ray, "the message must not wait for ray's import"
    assert answer.seconds < SECONDS


def test_cases_are_many_and_distinct() -> None:
    assert len({case.name for case in MALFORMED}) == len(MALFORMED) >= 40


def run_timed(command: list[str], **settings: Any) -> tuple[float, subprocess.CompletedProcess[str]]:
    """CPU seconds of a command, interpreter start included, and how it ended."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **settings)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done


def test_help_answers_within_a_second() -> None:
    command = [sys.executable, "-m", "rllib_efficientzero", "train", "file", "--help"]
    seconds = []
    for _ in range(3):
        needed, done = run_timed(command)
        seconds.append(needed)
        assert "--resume" in done.stdout
    assert min(seconds) < 1.0


@pytest.mark.parametrize("name", ["unknown config key", "tab indent", "unknown env"])
def test_process_answers_at_once(name: str, tmp_path: pathlib.Path) -> None:
    """The same through the real entry point, interpreter start included."""
    case = next(case for case in MALFORMED if case.name == name)
    (tmp_path / "bad.yaml").write_text(case.text)
    command = [sys.executable, "-m", "rllib_efficientzero", "train", "file", "bad.yaml"]
    seconds = []
    for _ in range(3):
        needed, done = run_timed(command, cwd=tmp_path)
        seconds.append(needed)
        assert done.returncode == 2
        assert done.stdout == ""
        assert f"bad.yaml:{case.line}: " in done.stderr
        assert "Traceback" not in done.stderr
    assert min(seconds) < SECONDS


def test_documentation_lists_every_option() -> None:
    documented = (pathlib.Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    command = typer.main.get_command(app).commands["train"].commands["file"]  # type: ignore[attr-defined]
    told = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    options = [name for parameter in told for name in parameter.opts if name.startswith("--")]
    assert len(options) > 10
    assert [name for name in options if f"`{name}`" not in documented] == []
