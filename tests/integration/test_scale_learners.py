"""Learners in processes of their own: what two learn from half a batch each is what one learns from all of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from scale_helpers import NETWORK, tiny_config, train_until
from torch import Tensor

from rllib_efficientzero import EfficientZero
from rllib_efficientzero.actors.batches import InlineBatches
from rllib_efficientzero.efficientzero_learner import EfficientZeroLearner
from rllib_efficientzero.efficientzero_rl_module import EfficientZeroRLModule
from rllib_efficientzero.replay import Windows

NUM_UPDATES, BATCH = 20, 16


class FixedStatistics(EfficientZeroRLModule):
    """Normalises by the running statistics in training, too, so that no sample depends on the others of its batch."""

    def train(self, mode: bool = True) -> FixedStatistics:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.eval()
        return self


class SumOverLearners(torch.autograd.Function):
    """A sum whose gradient is the sum of all Learners' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return SumOverLearners.forward(ctx, gradient)


def normalise_over_all_learners(layer: torch.nn.SyncBatchNorm, features: Tensor) -> Tensor:
    """What SyncBatchNorm does. Torch has it in kernels for GPUs; this takes their place on a CPU."""
    if not layer.training:
        return torch.nn.BatchNorm1d.forward(layer, features)
    axes = [axis for axis in range(features.ndim) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(features.ndim)]
    count = torch.distributed.get_world_size() * features.numel() / features.shape[1]
    mean = SumOverLearners.apply(features.sum(axes)) / count
    variance = SumOverLearners.apply((features - mean.view(shape)).square().sum(axes)) / count
    layer.num_batches_tracked += 1
    momentum = 1 / layer.num_batches_tracked if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean.detach(), momentum)
    layer.running_var.lerp_(variance.detach() * count / (count - 1), momentum)
    scale = layer.weight / (variance + layer.eps).sqrt()
    return (features - mean.view(shape)) * scale.view(shape) + layer.bias.view(shape)


class SynchronisedOnCpu(EfficientZeroLearner):
    """With `sync_batch_norm`, on a CPU."""

    def build(self) -> None:
        self.config.sync_batch_norm = True
        torch.nn.SyncBatchNorm.forward = normalise_over_all_learners
        # Refuses CPUs.
        torch.nn.parallel.DistributedDataParallel._passing_sync_batchnorm_handle = lambda *_: None
        super().build()


class GivenWindows:
    """A replay that is asked for nothing but what it was given."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows

    def sample(self, batch_size: int, *, beta: float) -> Windows:
        return self._windows


pytestmark = pytest.mark.usefixtures("shared_ray")


def build(num_learners: int, *, fixed_statistics: bool, synchronised: bool) -> EfficientZero:
    """Without anything random in its targets: fresh searches and augmentation are seeded by the shard, and one Learner
    has one shard where two have two."""
    config = tiny_config(
        reanalyze_ratio=0.0, use_augmentation=False, train_batch_size_per_learner=BATCH // max(1, num_learners)
    ).learners(num_learners=num_learners)
    if fixed_statistics:
        config.rl_module(rl_module_spec=RLModuleSpec(module_class=FixedStatistics, model_config=NETWORK))
    if synchronised and num_learners > 1:
        config.learners(learner_class=SynchronisedOnCpu)
    return config.build_algo()


def update(algo: EfficientZero, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    batches = InlineBatches(GivenWindows(windows), algo.config.num_learners)
    return algo._update(batches.next(BATCH, beta=lambda num_updates: 1.0, num_updates=0, num_following=0))


def weights(algo: EfficientZero, learner_index: int = 0) -> dict[str, torch.Tensor]:
    def state(learner: Any) -> dict[str, torch.Tensor]:
        state = learner.module[DEFAULT_MODULE_ID].unwrapped().state_dict()
        return {name: tensor.clone() for name, tensor in state.items()}

    return [answer.get() for answer in algo.learner_group.foreach_learner(state)][learner_index]


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def learn_side_by_side(*, fixed_statistics: bool = False, synchronised: bool = False) -> tuple[float, float]:
    """How far apart one Learner and two are after the same updates, and how far they have come."""
    are_equal = fixed_statistics or synchronised
    one, two = (
        build(num_learners, fixed_statistics=fixed_statistics, synchronised=synchronised) for num_learners in (0, 2)
    )
    one.local_replay_buffer.add(one._sample(64))
    two.learner_group.set_state(one.learner_group.get_state())
    start = weights(one)
    for _ in range(NUM_UPDATES):
        windows = one.local_replay_buffer.sample(BATCH, beta=1.0)
        (ids, priorities), (two_ids, two_priorities) = update(one, windows), update(two, windows)
        assert ids.tolist() == two_ids.tolist() == windows.position_ids.tolist()
        if are_equal:
            np.testing.assert_allclose(two_priorities, priorities, rtol=1e-3, atol=1e-5)
        one.local_replay_buffer.update_priorities(ids, priorities)
    if are_equal:
        assert largest_difference(weights(two, 0), weights(two, 1)) < 1e-6
    apart, come = largest_difference(weights(one), weights(two)), largest_difference(weights(one), start)
    one.stop()
    two.stop()
    return apart, come


def test_two_learners_with_half_a_batch_each_learn_what_one_learns() -> None:
    apart, come = learn_side_by_side(fixed_statistics=True)
    assert apart < 1e-4
    assert come > 0.01, "nothing was learned"


@pytest.mark.long
def test_batch_normalisation_sets_them_apart() -> None:
    """Each Learner normalises by the statistics of its own half; nothing else differs, as the test above shows."""
    apart, come = learn_side_by_side()
    assert 1e-3 < apart < come


@pytest.mark.long
def test_synchronised_batch_normalisation_brings_them_together() -> None:
    """Running statistics, which the largest difference includes, are those of the whole batch, too."""
    apart, come = learn_side_by_side(synchronised=True)
    assert apart < 1e-3
    assert come > 0.01, "nothing was learned"


def test_targets_of_all_learners_come_from_the_same_network() -> None:
    """Their statistics differ while they learn; those of the target network are averaged when it is copied."""
    algo = tiny_config().learners(num_learners=2).build_algo()
    result = train_until(algo, lambda result: result["num_updates_lifetime"] >= 12)
    assert result["learners"]["default_policy"]["total_loss"] > 0
    first, second = weights(algo, 0), weights(algo, 1)
    targets = [name for name in first if name.startswith("target_network.") and "num_batches_tracked" not in name]
    assert any("running_mean" in name for name in targets)
    for name in targets:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
    algo.stop()


def test_a_learner_in_its_own_process_learns_as_one_in_the_driver() -> None:
    algos = [tiny_config(total_env_steps=120).learners(num_learners=number).build_algo() for number in (0, 1)]
    for algo in algos:
        train_until(algo, lambda result: result["training_done"])
    assert largest_difference(weights(algos[0]), weights(algos[1])) == 0
    for algo in algos:
        algo.stop()


def test_no_result_from_any_learner_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """RLlib returns nothing, for ever, once all Learners are out of service."""
    algo = tiny_config().build_algo()
    monkeypatch.setattr(algo.learner_group, "update", lambda **kwargs: [])
    with pytest.raises(RuntimeError, match="no Learner returned a result"):
        train_until(algo, lambda result: False)
    algo.stop()
