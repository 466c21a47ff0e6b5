"""A run whose losses are no longer finite ends in a sentence, with what is needed to look into it (T14).

That one update of this kind changes nothing at all is tested in `tests/unit/test_learner.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from rllib_efficientzero.efficientzero_learner import DivergedError
from tests.integration.scale_helpers import tiny_config, train_until

IN_A_ROW = 10

pytestmark = pytest.mark.usefixtures("shared_ray")


@pytest.mark.parametrize("num_learners", [0, pytest.param(2, marks=pytest.mark.long)])
def test_a_learning_rate_of_a_million(num_learners: int, measured: Callable[[str], None]) -> None:
    algo = tiny_config(lr=1e6).learners(num_learners=num_learners).build_algo()
    with pytest.raises(DivergedError, match=rf"^diverged at update \d+: .* finite {IN_A_ROW} times in a row; \w+ sh"):
        train_until(algo, lambda result: False)
    written = json.loads((algo.run_directory / "diverged.json").read_text())
    assert written["error"].startswith(f"diverged at update {algo.num_updates}: ")
    skipped = written["last_updates"][-IN_A_ROW:]
    assert {entry["update"] for entry in skipped} == {algo.num_updates}
    for entry in skipped:
        assert len(set(entry["position_ids"])) == algo.config.train_batch_size_per_learner
        assert max(entry["position_ids"]) < algo.num_interactions
        assert {"total_loss", "gradient_norm", "value_loss"} <= set(entry["metrics"])
    measured(f"lr 1e6: ended at update {algo.num_updates}, {len(skipped)} skipped updates described")
    # The replay goes on giving samples, and the weights are what they were before the first of the ten.
    assert algo.local_replay_buffer.get_metrics()["max_priority"] < float("inf")
    if num_learners == 0:
        weights = algo.learner_group._learner.module["default_policy"].state_dict()
        assert all(torch.isfinite(value).all() for value in weights.values())
    algo.stop()
