"""Ctrl-C and SIGTERM in the middle of a run: a checkpoint soon, the right exit code, and no process left behind."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from checkpoint_helpers import tiny_config, train
from command import Command, experiment
from processes import descendants, still_alive
from tiny_pixels import Hanging

from rllib_efficientzero import interruption, run_state
from rllib_efficientzero.checkpoint.manifest import find_newest, read_manifest, verify

SECONDS_TO_SAVE = 20.0


@pytest.mark.parametrize(
    ("number", "num_env_runners", "code"),
    [
        pytest.param(signal.SIGINT, 1, 130, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, 0, 143, id="SIGTERM", marks=pytest.mark.long),
    ],
)
def test_a_signal_saves_first(
    tmp_path: pathlib.Path, measured: Callable[[str], None], number: int, num_env_runners: int, code: int
) -> None:
    """No checkpoint is asked for: the one that is found was written because of the signal."""
    command = Command(tmp_path, experiment(tmp_path, num_env_runners=num_env_runners))
    command.wait_for("[tiny] iter 10 ")
    started = descendants(command.process.pid)
    assert len(started) >= 3, "Ray's processes"
    sent = time.time()
    # As a terminal sends Ctrl-C, and `timeout` SIGTERM.
    os.killpg(command.process.pid, number)
    assert command.end() == code, command.output
    newest = find_newest(command.trial)
    assert newest is not None, command.output
    seconds = (newest / "manifest.json").stat().st_mtime - sent
    assert seconds < SECONDS_TO_SAVE
    measured(
        f"checkpoint complete {seconds:.1f} s after the signal, the command ended after {time.time() - sent:.1f} s"
    )
    assert read_manifest(newest)["counters"]["training_iteration"] >= 10
    assert "go on with: rllib train file" in command.output
    assert "Traceback" not in command.output
    assert still_alive(started, timeout_s=15) == set()


def test_a_second_signal_ends_at_once(tmp_path: pathlib.Path) -> None:
    (tmp_path / "slow_env.py").write_text(SLOW_ENV)
    command = Command(
        tmp_path, experiment(tmp_path, env="slow_env.SlowEnv", env_config={"sign": str(tmp_path / "sign")})
    )
    command.wait_for("[tiny] iter 1 ")
    started = descendants(command.process.pid)
    (tmp_path / "sign").touch()
    os.kill(command.process.pid, signal.SIGTERM)
    command.wait_for("stopping: running trials save a checkpoint first")
    os.kill(command.process.pid, signal.SIGTERM)
    assert command.end() == 143, command.output
    assert still_alive(started, timeout_s=15) == set()


SLOW_ENV = """
import pathlib, time
from tiny_pixels import TinyPixels

class SlowEnv(TinyPixels):
    def __init__(self, config):
        super().__init__(config)
        self.sign = pathlib.Path(config["sign"])

    def step(self, action):
        if self.sign.exists():
            time.sleep(30.0)
        return super().step(action)
"""


def test_an_iteration_is_cut_between_updates(shared_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was owed comes before anything else is sampled."""
    algo: Any = train(tiny_config().build_algo(), 20)
    before = algo.num_updates
    with monkeypatch.context() as patch:
        patch.setattr(interruption, "requested", lambda: True)
        algo.train()
    assert algo.num_updates == before
    steps = algo.num_interactions
    algo.train()
    assert algo.num_interactions == steps
    assert algo.num_updates > before
    algo.stop()


def test_an_env_runner_that_hangs_is_waited_for_once(
    shared_ray: None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, measured: Callable[[str], None]
) -> None:
    """Asynchronous self-play: the run does not notice before it saves."""
    config = tiny_config(Hanging, num_env_runners=2).environment(env_config={"directory": str(tmp_path)})
    algo: Any = train(config.env_runners(sample_asynchronously=True).build_algo(), 10)
    (tmp_path / "hang").touch()
    # Whoever waits for ever is released, to fail.
    release = threading.Timer(60.0, (tmp_path / "hang").unlink, kwargs={"missing_ok": True})
    release.start()
    while not (tmp_path / "hangs").exists():
        algo.train()
    monkeypatch.setattr(interruption, "requested", lambda: True)
    begun = time.monotonic()
    saved = pathlib.Path(algo.save_to_path(tmp_path / "checkpoint"))
    seconds = time.monotonic() - begun
    release.cancel()
    (tmp_path / "hang").unlink(missing_ok=True)
    algo.stop()
    measured(f"saved after {seconds:.1f} s")
    assert run_state.SECONDS_TO_ANSWER_WHEN_STOPPING <= seconds < 2 * run_state.SECONDS_TO_ANSWER_WHEN_STOPPING
    verify(saved)


def test_an_evaluation_that_is_cut_short_is_not_counted(shared_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config().evaluation(evaluation_interval=2, evaluation_duration=4)
    algo: Any = train(config.build_algo(), 4)
    recorded = json.loads((algo.run_directory / "evaluation.json").read_text())["evaluations"]
    assert [len(record["episode_returns"]) for record in recorded] == [4, 4]
    algo.train()
    with monkeypatch.context() as patch:
        patch.setattr(interruption, "requested", lambda: True)
        algo.train()
    assert json.loads((algo.run_directory / "evaluation.json").read_text())["evaluations"] == recorded
    algo.stop()
