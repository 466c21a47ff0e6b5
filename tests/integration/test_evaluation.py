"""Evaluation: beside training, of the weights that it is filed under; apart from training, whoever calls it."""

from __future__ import annotations

import json
import pathlib
import threading
from typing import Any

import numpy as np
import pytest
from checkpoint_helpers import fingerprint
from scale_helpers import tiny_config, train_until

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


def test_evaluating_beside_training_does_not_disturb_it() -> None:
    found = []
    for interval in (1, None):
        algo = build(evaluation_interval=interval, evaluation_parallel_to_training=interval is not None)
        for _ in range(5):
            algo.train()
        found.append({key: value for key, value in fingerprint(algo).items() if "evaluation" not in key})
        algo.stop()
    assert found[0] == found[1]
