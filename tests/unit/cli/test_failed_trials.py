"""What is said of a trial that failed: its cause in one line, whatever wrote the traceback."""

from __future__ import annotations

import pathlib

import pytest

from rllib_efficientzero.cli.report import what_went_wrong

RAISED = """Traceback (most recent call last):
  File "algorithm.py", line 1, in step
ValueError: the learning rate is negative

The above exception was the direct cause of the following exception:

ray.exceptions.RayTaskError(ValueError)
"""
LOST = """Failure # 1 (occurred at 2026-11-26_17-55-32)
The actor died unexpectedly before finishing this task.
\tclass_name: PPO
\tactor_id: 0123
The node was running low on memory.
The actor never ran - it was cancelled before it started running.
"""


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (RAISED, "ValueError: the learning rate is negative"),
        (
            LOST,
            "The actor died unexpectedly before finishing this task. The node was running low on memory. "
            "The actor never ran - it was cancelled before it started running.",
        ),
        ("Traceback (most recent call last):\nSystemExit: 3\n", "SystemExit: 3"),
        ("", "(no message)"),
    ],
    ids=["raised", "lost", "without a message of its own", "empty"],
)
def test_the_cause_is_told(text: str, cause: str, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "error.txt"
    file.write_text(text)
    assert what_went_wrong(file) == cause


def test_a_missing_file_is_named(tmp_path: pathlib.Path) -> None:
    assert "error.txt" in what_went_wrong(tmp_path / "error.txt")
