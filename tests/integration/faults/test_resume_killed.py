"""kill -9 of the whole run, `--resume`, and the end is the same as if nothing had happened."""

from __future__ import annotations

import os
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from checkpoint_helpers import assert_equal, fingerprint
from command import Command, experiment
from processes import descendants, still_alive, title

from rllib_efficientzero import EfficientZero
from rllib_efficientzero.checkpoint.manifest import find_newest, read_manifest


def fingerprint_of(checkpoint: pathlib.Path) -> dict[str, str]:
    """Hashes of the state in a checkpoint."""
    algo: Any = EfficientZero.from_checkpoint(checkpoint)
    found = fingerprint(algo)
    algo.stop()
    return found


@pytest.mark.parametrize(
    ("env", "half"),
    [
        ("CartPole-v1", 8),
        pytest.param("CartPole-v1", 100, marks=pytest.mark.long),
        pytest.param("tiny_pixels.TinyPixels", 100, marks=pytest.mark.long),
        pytest.param("tiny_pixels.Unsaveable", 100, marks=pytest.mark.long),
    ],
)
def test_killed_and_resumed_equals_straight(
    cluster: str, tmp_path: pathlib.Path, measured: Callable[[str], None], env: str, half: int
) -> None:
    """What is killed, and what goes on with it, has a ray of its own, as for most users; the first must go with it."""
    arguments = ["--checkpoint-freq", str(half), "--stop", f'{{"training_iteration": {2 * half}}}']

    def begin(name: str, cluster: str | None) -> Command:
        directory = tmp_path / name
        directory.mkdir()
        return Command(directory, experiment(directory, env=env), *arguments, cluster=cluster)

    straight, killed = begin("straight", cluster), begin("killed", None)
    killed.wait_for(f"[tiny] iter {half + half // 2} ")
    # Ray's two agents look once a minute whether they are still needed.
    started = {pid for pid in descendants(killed.process.pid) if "Agent" not in title(pid)}
    os.kill(killed.process.pid, signal.SIGKILL)
    killed_at = time.monotonic()
    assert killed.end() == -signal.SIGKILL
    assert still_alive(started, timeout_s=60) == set()
    measured(f"{len(started)} processes gone {time.monotonic() - killed_at:.0f} s after kill -9 of the driver")
    resumed = Command(killed.directory, killed.directory / "tiny.yaml", *arguments, "--resume")
    ends = []
    for command in (straight, resumed):
        assert command.end() == 0, command.output
        newest = find_newest(command.trial)
        assert newest is not None
        assert read_manifest(newest)["counters"]["training_iteration"] == 2 * half
        ends.append(fingerprint_of(newest))
    assert f"starting from {resumed.trial}/checkpoint_000000" in resumed.output.replace("\n", " ")
    expected, found = ends
    assert_equal(found, expected)
    measured(f"{env}: {2 * half} iterations straight, and {half} + kill -9 + {half}: {len(found)} hashes are equal")


@pytest.mark.long
def test_the_newest_whole_checkpoint_is_gone_on_from(tmp_path: pathlib.Path) -> None:
    """Also if Tune never took note of it; what is incomplete is passed over."""
    file = experiment(tmp_path)
    command = Command(tmp_path, file, "--checkpoint-freq", "5")
    command.wait_for("[tiny] iter 16 ")
    os.kill(command.process.pid, signal.SIGKILL)
    command.end()
    names = sorted(path.name for path in command.trial.glob("checkpoint_*"))
    assert names[:2] == ["checkpoint_000000", "checkpoint_000001"]
    last = command.trial / names[-1]
    for name in ("checkpoint_000009", "checkpoint_000010"):
        # Whole ones that nobody noted, and the newest of them was never finished.
        os.system(f"cp -r {last} {command.trial / name}")
    (command.trial / "checkpoint_000010" / "algorithm_state.pkl").unlink()
    iteration = read_manifest(last)["counters"]["training_iteration"]
    stop = f'{{"training_iteration": {iteration + 2}}}'
    resumed = Command(tmp_path, file, "--resume", "--stop", stop)
    assert resumed.end() == 0, resumed.output
    assert "checkpoint passed over" in resumed.output
    assert "algorithm_state.pkl is missing" in resumed.output.replace("\n", " ")
    assert f"starting from {command.trial}/checkpoint_000009" in resumed.output.replace("\n", " ")
    newest = find_newest(command.trial)
    assert newest is not None
    assert read_manifest(newest)["counters"]["training_iteration"] == iteration + 2


@pytest.mark.long
def test_foreign_checkpoints_need_to_be_trusted(tmp_path: pathlib.Path) -> None:
    """A link out of the experiment's directory is as foreign as a `restore:` from elsewhere."""
    file = experiment(tmp_path)
    command = Command(tmp_path, file, "--stop", '{"training_iteration": 3}')
    assert command.end() == 0, command.output
    (checkpoint,) = command.trial.glob("checkpoint_*")
    elsewhere = tmp_path / "elsewhere"
    checkpoint.rename(elsewhere)
    checkpoint.symlink_to(elsewhere)
    longer = ["--stop", '{"training_iteration": 5}']
    refused = Command(tmp_path, file, "--resume", *longer)
    assert refused.end() == 2
    assert "--trust-checkpoint" in refused.output
    assert "Traceback" not in refused.output
    trusted = Command(tmp_path, file, "--resume", "--trust-checkpoint", *longer)
    assert trusted.end() == 0, trusted.output
    assert f"starting from {checkpoint}" in trusted.output.replace("\n", " ")
