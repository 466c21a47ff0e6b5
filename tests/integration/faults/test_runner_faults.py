"""EnvRunners in processes of their own that are killed, crash, hang or fail: the run goes on, or ends in a sentence."""

from __future__ import annotations

import math
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from env_faults import CountedEnv, assert_replay_is_whole, config, steps_taken, train_until

from rllib_efficientzero import EfficientZero, EfficientZeroConfig
from rllib_efficientzero.env.guard import BadEnvStepError
from rllib_efficientzero.env.sampling import NoEnvRunnersError
from tests.faulty_envs import crash, explode, hang, once

FRAGMENT = 2 * 4
"""Steps that a runner of `config()` has in hand at most."""
RECOVERY_S = 30.0

pytestmark = pytest.mark.usefixtures("shared_ray")


def remote_config(num_runners: int, count_file: pathlib.Path, **env_config: Any) -> EfficientZeroConfig:
    return config(remote=num_runners, count_file=str(count_file), **env_config).env_runners(sample_timeout_s=5)


def pids(algo: EfficientZero) -> list[int]:
    return algo.env_runner_group.foreach_env_runner(lambda runner: os.getpid(), local_env_runner=False)


def train_until_all_are_back(algo: EfficientZero, num_runners: int, num_restarts: int) -> dict[str, Any]:
    """Trains until so many restarts are counted and nobody is missing; the last result."""
    for _ in range(2000):
        result = algo.train()
        health = result["fault_tolerance"]
        if health["num_healthy_workers"] == num_runners and health["num_remote_worker_restarts"] == num_restarts:
            return result
    raise AssertionError(f"not back: {health}")


def kill_runners(num_runners: int, kills_per_round: list[int], tmp_path: pathlib.Path) -> list[float]:
    """Kills so many runners at once in each round, at random times while the run goes on, and checks what T1 and T2 of
    the promises say; returns the seconds until all were back."""
    rng = np.random.default_rng(0)
    count_file = tmp_path / "steps"
    algo = remote_config(num_runners, count_file).build_algo()
    train_until(algo, 64)
    seconds = []
    num_kills = 0
    for kills in kills_per_round:
        victims = rng.choice(pids(algo), size=kills, replace=False).tolist()
        killed_at: list[float] = []

        def kill(victims: list[int] = victims, killed_at: list[float] = killed_at) -> None:
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            killed_at.append(time.monotonic())

        threading.Timer(rng.uniform(0, 1), kill).start()
        while not killed_at:
            algo.train()
        num_kills += kills
        train_until_all_are_back(algo, num_runners, num_kills)
        seconds.append(time.monotonic() - killed_at[0])
        # Who came back acts with the newest weights, and not with the seeds of the first.
        states = algo.env_runner_group.foreach_env_runner(
            lambda runner: (runner._weights_seq_no, int(runner.module.num_updates), runner._seed)
        )
        assert len({(sequence, updates) for sequence, updates, _ in states}) == 1
        assert states[0][1] == algo.num_updates
        assert len({seed for _, _, seed in states}) == num_runners + 1
        assert_replay_is_whole(algo)
        lost = steps_taken(count_file) - algo.num_interactions
        assert 0 <= lost <= num_kills * FRAGMENT
    algo.stop()
    return seconds


def test_killed_runners_cost_a_fragment_each_and_come_back(
    tmp_path: pathlib.Path, measured: Callable[[str], None]
) -> None:
    """One of two, then both at once."""
    seconds = kill_runners(2, [1, 2], tmp_path)
    measured(f"back after {', '.join(f'{value:.0f}' for value in seconds)} s")
    assert seconds[0] < RECOVERY_S
    assert seconds[1] < 60


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_twenty_rounds_of_kills(tmp_path: pathlib.Path, measured: Callable[[str], None]) -> None:
    seconds = kill_runners(4, [1] * 20, tmp_path)
    measured(f"back after {np.median(seconds):.0f} s (median), {max(seconds):.0f} s at most")
    assert max(seconds) < RECOVERY_S


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_all_four_runners_killed_at_once(tmp_path: pathlib.Path, measured: Callable[[str], None]) -> None:
    seconds = kill_runners(4, [4, 4, 4], tmp_path)
    measured(f"all back after {', '.join(f'{value:.0f}' for value in seconds)} s")
    assert max(seconds) < 60


def test_runners_whose_environments_raise_crash_or_hang_are_replaced(tmp_path: pathlib.Path) -> None:
    count_file = tmp_path / "steps"
    faults = {7: explode, 12: crash, 17: hang}
    break_at = {at: once(str(tmp_path / fault.__name__), fault) for at, fault in faults.items()}
    algo = remote_config(2, count_file, break_at=break_at).build_algo()
    begun = time.monotonic()
    result = train_until_all_are_back(algo, num_runners=2, num_restarts=3)
    assert time.monotonic() - begun < 3 * RECOVERY_S
    train_until(algo, result["num_interactions_lifetime"] + 100)
    assert_replay_is_whole(algo)
    assert 0 <= steps_taken(count_file) - algo.num_interactions <= 3 * FRAGMENT
    algo.stop()


def test_a_bad_step_in_another_process_ends_the_run_in_a_sentence(tmp_path: pathlib.Path) -> None:
    algo = remote_config(1, tmp_path / "steps", break_at={7: {"reward": math.nan}}, in_episodes=lambda e: e == 3)
    algo = algo.build_algo()
    with pytest.raises(
        BadEnvStepError, match=r"^environment \d of EnvRunner 1, step 7 of its episode: the reward is nan"
    ):
        train_until(algo, 1000)
    assert_replay_is_whole(algo)
    algo.stop()


def test_environments_that_always_fail_end_the_run_with_their_last_error(tmp_path: pathlib.Path) -> None:
    algo = remote_config(1, tmp_path / "steps", break_at={3: explode})
    algo = algo.fault_tolerance(env_runner_restore_timeout_s=5).build_algo()
    begun = time.monotonic()
    with pytest.raises(
        NoEnvRunnersError, match=r"none of 1 EnvRunners answered for 5 s.*KeyError: 'the simulator lost"
    ):
        train_until(algo, 1000)
    assert time.monotonic() - begun < RECOVERY_S + 5
    algo.stop()


def test_runners_that_may_not_be_restarted_end_the_run(tmp_path: pathlib.Path) -> None:
    algo = remote_config(1, tmp_path / "steps", break_at={3: explode})
    algo = algo.fault_tolerance(restart_failed_env_runners=False).build_algo()
    with pytest.raises(NoEnvRunnersError, match=r"EnvRunner 1 failed: EnvFailedError: environment \d of EnvRunner 1"):
        train_until(algo, 1000)
    algo.stop()


class NoSimulator(CountedEnv):
    """An environment that cannot even be made."""

    def __init__(self, env_config: Any) -> None:
        raise FileNotFoundError("no simulator here")


def test_runners_that_cannot_be_built_say_why() -> None:
    with pytest.raises(NoEnvRunnersError, match=r"no EnvRunner could be built: FileNotFoundError: no simulator here"):
        config(NoSimulator, remote=1).build_algo()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_one_error_in_a_thousand_steps(tmp_path: pathlib.Path, measured: Callable[[str], None]) -> None:
    """In runners of their own, restarting environments: as many steps in 500 iterations, but for a fifth at most."""
    stored = {}
    for name, settings in (("sound", {}), ("raising", {"break_at": RaisesNowAndThen(1e-3)})):
        count_file = tmp_path / name
        algo = remote_config(2, count_file, **settings).env_runners(rollout_fragment_length=10)
        algo = algo.fault_tolerance(restart_failed_sub_environments=True).training(replay_ratio=0.01).build_algo()
        for _ in range(500):
            result = algo.train()
        stored[name] = result["num_interactions_lifetime"]
        kept = stored[name] / steps_taken(count_file)
        restarts = result["env_runners"]["num_env_restarts_lifetime"]
        assert_replay_is_whole(algo)
        algo.stop()
    measured(f"{restarts} restarts in {stored['raising']} steps, of which {kept:.1%} were kept")
    assert restarts == pytest.approx(stored["raising"] / 1000, abs=14)
    assert kept > 0.8
    assert stored["raising"] > 0.8 * stored["sound"]


class RaisesNowAndThen(dict[int, Any]):
    """A script of faults for `ScriptedEnv`: at any step, with probability p."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def __bool__(self) -> bool:
        return True

    def __reduce__(self) -> Any:
        return RaisesNowAndThen, (self.probability,)

    def get(self, key: int, default: Any = None) -> Any:
        return explode if np.random.default_rng().random() < self.probability else None
