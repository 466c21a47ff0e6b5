"""Who plays how much of an evaluation when EnvRunners are lost, with RLlib's manager of them replaced."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest

from rllib_efficientzero.env import evaluating, sampling
from rllib_efficientzero.env.evaluating import Played, divided, evaluate_remotely
from rllib_efficientzero.env.guard import BadEnvStepError
from rllib_efficientzero.env.sampling import NoEnvRunnersError


class Runners:
    """Plays what is asked for, but for the worker indices in `faults`: those do not answer, or answer an error."""

    def __init__(self, num: int, **faults: Exception | None) -> None:
        self.in_service = list(range(1, num + 1))
        self.faults = {int(name.removeprefix("of_")): fault for name, fault in faults.items()}
        self.asked: list[tuple[int, int, int]] = []
        self._worker_manager = self

    def healthy_actor_ids(self) -> list[int]:
        return list(self.in_service)

    def foreach_actor(self, plays: list[Callable], *, remote_actor_ids: list[int], timeout_seconds: float) -> list[Any]:
        results = []
        for index, play in zip(remote_actor_ids, plays, strict=True):
            share = play.keywords["share"]
            self.asked.append((share.evaluation_round, index, share.num))
            if index not in self.faults:
                answer = Played(index, num_steps=share.num, num_episodes=share.num)
            elif (error := self.faults[index]) is not None:
                answer = Played(index, error=error)
            else:
                continue
            results.append(types.SimpleNamespace(ok=True, actor_id=index, get=lambda answer=answer: answer))
        return results[::-1]


@pytest.fixture(autouse=True)
def _ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "end_process", lambda runners, index: runners.in_service.remove(index))


def evaluate(runners: Runners, num: int, unit: str = "episodes", *, may_fail: bool = True) -> list[tuple[int, int]]:
    config = types.SimpleNamespace(
        evaluation_duration=num,
        evaluation_duration_unit=unit,
        evaluation_sample_timeout_s=1.0,
        evaluation_force_reset_envs_before_iteration=True,
        restart_failed_env_runners=may_fail,
        ignore_env_runner_failures=False,
    )
    return [(played.worker_index, played.num_episodes) for played in evaluate_remotely(runners, config)]


@pytest.mark.parametrize("unit", ["episodes", "timesteps"])
def test_everybody_plays_a_share_and_nobody_none(unit: str) -> None:
    assert evaluate(Runners(3), 7, unit) == [(1, 3), (2, 2), (3, 2)]
    assert evaluate(Runners(3), 2, unit) == [(1, 1), (2, 1)]


def test_shares_of_the_lost_are_played_by_the_others_in_a_round_of_its_own() -> None:
    runners = Runners(3, of_1=None)
    assert evaluate(runners, 7) == [(2, 2), (3, 2), (2, 2), (3, 1)]
    assert runners.asked[-2:] == [(1, 2, 2), (1, 3, 1)]
    assert runners.in_service == [2, 3]


def test_where_all_are_lost_what_was_played_counts() -> None:
    assert evaluate(Runners(2, of_1=None, of_2=RuntimeError("broken")), 4) == []
    assert evaluate(Runners(0), 4) == []


def test_what_ends_a_run_in_self_play_ends_it_here() -> None:
    with pytest.raises(BadEnvStepError, match="the reward is nan"):
        evaluate(Runners(2, of_1=BadEnvStepError("the reward is nan")), 4)
    with pytest.raises(NoEnvRunnersError, match=r"evaluation EnvRunner 2 failed: .*evaluation_sample_timeout_s=1"):
        evaluate(Runners(2, of_2=None), 4, may_fail=False)


def test_an_error_comes_back_as_a_value() -> None:
    def sample(**_: Any) -> list[Any]:
        raise KeyError("the simulator lost its state")

    runner = types.SimpleNamespace(sample=sample, worker_index=3)
    played = evaluating.play(runner, evaluating.Share(2, by_episodes=True))
    assert (played.worker_index, str(played.error)) == (3, "KeyError: 'the simulator lost its state'")


def test_shares_sum_to_the_whole() -> None:
    assert [divided(num, 3) for num in (0, 2, 7)] == [[0, 0, 0], [1, 1, 0], [3, 2, 2]]
