"""One GPU shared by processes of every kind. Only where there is one."""

from __future__ import annotations

from typing import Any

import pytest
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from scale_helpers import tiny_config, train_until

pytestmark = [
    pytest.mark.usefixtures("shared_ray"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def test_fractions_of_a_gpu_for_runner_learner_and_reanalyze_actor() -> None:
    """They learn, each on its share; the Learner's process group is NCCL's."""
    config = tiny_config().learners(num_learners=1, num_gpus_per_learner=0.4)
    config.env_runners(num_env_runners=1, num_gpus_per_env_runner=0.3)
    config.reanalyze(num_actors=1, num_gpus_per_actor=0.3)
    algo = config.build_algo()
    assert ray.available_resources().get("GPU", 0.0) == pytest.approx(ray.cluster_resources()["GPU"] - 1.0)
    result = train_until(algo, lambda result: result["num_updates_lifetime"] >= 8)
    assert result["learners"][DEFAULT_MODULE_ID]["total_loss"] > 0
    assert result["reanalyze"]["num_inline_batches_lifetime"] == 0

    def learner_runs_on(learner: Any) -> tuple[str, str]:
        backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else "none"
        return learner.module[DEFAULT_MODULE_ID].unwrapped().num_updates.device.type, backend

    (answer,) = algo.learner_group.foreach_learner(learner_runs_on)
    assert answer.get() == ("cuda", "nccl")
    devices = algo.env_runner_group.foreach_env_runner(
        lambda runner: runner.module.num_updates.device.type, local_env_runner=False
    )
    assert devices == ["cuda"]
    algo.stop()


def test_a_runner_beside_the_learner_acts_on_its_gpu_with_its_weights() -> None:
    algo = tiny_config().learners(num_gpus_per_learner=1).build_algo()
    train_until(algo, lambda result: result["num_updates_lifetime"] >= 5)
    runner, learner = algo.env_runner_group.local_env_runner, algo.learner_group._learner
    assert runner.module.num_updates.device == learner.module[DEFAULT_MODULE_ID].num_updates.device
    assert runner.module.num_updates.device.type == "cuda"
    algo.stop()
