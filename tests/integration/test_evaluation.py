"""Evaluation: beside training, of the weights that it is filed under; apart from training, whoever calls it."""

from __future__ import annotations

import contextlib
import json
import pathlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from checkpoint_helpers import fingerprint
from scale_helpers import tiny_config, train_until

from rllib_efficientzero import evaluated_algorithm
from rllib_efficientzero.env.env_runner import EfficientZeroEnvRunner
from rllib_efficientzero.env.evaluating import evaluate_remotely
from tests.faulty_envs import ScriptedEnv, crash, hang

pytestmark = pytest.mark.usefixtures("shared_ray")


def build(*, num_env_runners: int = 1, **evaluation: Any) -> Any:
    """A run that learns from its second iteration on, 8 updates each, with EnvRunners of its own that evaluate."""
    settings = {"evaluation_interval": 1, "evaluation_num_env_runners": num_env_runners, "evaluation_duration": 2}
    return tiny_config().evaluation(**(settings | evaluation)).build_algo()


def recorded(algo: Any) -> list[dict[str, Any]]:
    file = algo.run_directory / "evaluation.json"
    return json.loads(file.read_text())["evaluations"] if file.exists() else []


def learned_weights(algo: Any) -> dict[str, np.ndarray]:
    state = algo.learner_group.get_state(components="learner/rl_module", inference_only=True)
    return state["learner"]["rl_module"]["default_policy"]


def evaluated_weights(algo: Any) -> dict[str, np.ndarray]:
    (weights,) = algo.eval_env_runner_group.foreach_env_runner(
        lambda runner: runner.module.get_state(), local_env_runner=False
    )
    return weights


def test_evaluating_beside_training_is_of_the_weights_before_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    algo = build(evaluation_parallel_to_training=True)
    train_until(algo, lambda result: result["num_updates_lifetime"] >= 8)
    before, steps, updates = learned_weights(algo), algo.num_interactions, algo.num_updates
    path = algo.save_to_path(tmp_path / "checkpoint")
    num_records = len(recorded(algo))

    # Training ends before the evaluation begins.
    iterate, has_trained = algo._run_one_training_iteration, threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(algo, "_run_one_training_iteration", lambda: (iterate(), has_trained.set())[0])
        patch.setattr(algo, "_before_evaluate", lambda: has_trained.wait(60))
        algo.train()
    assert algo.num_updates > updates
    record = recorded(algo)[-1]
    assert (record["num_interactions_lifetime"], record["num_updates_lifetime"]) == (steps, updates)
    acted_with = evaluated_weights(algo)
    for name, value in acted_with.items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)

    # A run resumed from before that iteration makes the evaluation again, and files it once.
    algo.restore_from_path(path)
    assert len(recorded(algo)) == num_records
    evaluate, has_evaluated = algo.evaluate, threading.Event()
    with monkeypatch.context() as patch:
        # The evaluation ends before training begins.
        patch.setattr(algo, "evaluate", lambda **kwargs: (evaluate(**kwargs), has_evaluated.set())[0])
        patch.setattr(algo, "_run_one_training_iteration", lambda: (has_evaluated.wait(60), iterate())[1])
        algo.train()
    algo.restore_from_path(path)
    algo.train()
    repeated = recorded(algo)
    assert len(repeated) == num_records + 1
    assert repeated[-1]["num_updates_lifetime"] == updates
    algo.stop()


def test_evaluating_by_hand_does_not_disturb_training(tmp_path: pathlib.Path) -> None:
    """Without any setting of evaluation but how much to play."""
    found = []
    for by_hand in (True, False):
        algo: Any = tiny_config().evaluation(evaluation_duration=3).build_algo()
        for iteration in range(6):
            algo.train()
            if by_hand and iteration in (2, 4):
                result = algo.evaluate()["env_runners"]
                assert result["num_episodes"] == len(result["episode_returns"]) == 3
        found.append({key: value for key, value in fingerprint(algo).items() if "evaluation" not in key})
        if by_hand:
            assert algo.eval_env_runner.config.explore is False
            assert [record["training_iteration"] for record in recorded(algo)] == [3, 5]
            path = algo.save_to_path(tmp_path / "checkpoint")
        else:
            algo.restore_from_path(path)  # of one that had an EnvRunner more
            assert fingerprint(algo) == found[1]
        algo.stop()
    assert found[0] == found[1]


def test_evaluating_beside_training_does_not_disturb_it() -> None:
    found = []
    for interval in (1, None):
        algo = build(evaluation_interval=interval, evaluation_parallel_to_training=interval is not None)
        for _ in range(5):
            algo.train()
        found.append({key: value for key, value in fingerprint(algo).items() if "evaluation" not in key})
        algo.stop()
    assert found[0] == found[1]


class Lottery(ScriptedEnv):
    """Every episode has a length and a return of its own, drawn from the seed."""

    def __init__(self, env_config: dict[str, Any]) -> None:
        super().__init__(**env_config)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        result = super().reset(**kwargs)
        self.length, self.prize = int(self.np_random.integers(4, 9)), self.np_random.random()
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, Any]:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, self.prize, terminated, truncated, info


def test_only_scores_count_as_episodes_and_every_round_has_its_own() -> None:
    """More episodes end than are kept, where the environments' are of different lengths."""
    config = tiny_config().environment(Lottery).evaluation(evaluation_interval=1).get_evaluation_config_object()
    assert config is not None
    config.validate()
    runner = EfficientZeroEnvRunner(config=config, worker_index=1, num_workers=1)
    returns = []
    for evaluation_round in (0, 1, 0):
        assert len(runner.sample(num_episodes=3, evaluation_round=evaluation_round)) == 3
        metrics = runner.get_metrics()
        assert metrics["num_episodes"].peek() == 3
        returns.append(metrics["episode_returns"].peek())
    assert not set(returns[0]) & set(returns[1])
    assert returns[2] == returns[0]
    runner.stop()


def when_told(order: pathlib.Path, fault: Callable[[Any], None]) -> Callable[[Any], None]:
    """`fault`, in the first process to get here once the file `order` is there; this takes it away."""

    def break_when_told(env: Any = None) -> None:
        with contextlib.suppress(FileNotFoundError):
            order.unlink()
            fault(env)

    return break_when_told


def test_lost_evaluation_runners_are_replaced_and_the_others_play_their_share(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    break_at = {2: when_told(tmp_path / "crash", crash), 3: when_told(tmp_path / "hang", hang)}
    config = tiny_config().environment(Lottery)
    config = config.evaluation(
        evaluation_interval=1,
        evaluation_num_env_runners=2,
        evaluation_duration=6,
        evaluation_sample_timeout_s=10,
        evaluation_config={"env_config": {"break_at": break_at}},
    )
    algo: Any = config.build_algo()
    for fault in ("crash", "hang"):
        (tmp_path / fault).touch()
        result = algo.train()["evaluation"]
        assert not (tmp_path / fault).exists()
        assert result["num_healthy_workers"] == 1
        record = recorded(algo)[-1]
        assert len(set(record["episode_returns"])) == 6  # none of them twice
        assert result["env_runners"]["num_episodes"] == 6
        assert "num_episodes_missing" not in record
        train_until(algo, lambda result: result["evaluation"]["num_healthy_workers"] == 2)

    num_records = len(recorded(algo))
    with monkeypatch.context() as patch:
        patch.setattr(evaluated_algorithm, "evaluate_remotely", lambda *args: evaluate_remotely(*args)[:1])
        algo.train()
        patch.setattr(evaluated_algorithm, "evaluate_remotely", lambda *args: [])
        result = algo.train()
    (record,) = recorded(algo)[num_records:]  # RLlib would tell the same scores again
    assert (len(record["episode_returns"]), record["num_episodes_missing"]) == (3, 3)
    assert np.isnan(result["evaluation"]["env_runners"]["episode_return_mean"])
    algo.stop()
