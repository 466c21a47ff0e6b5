"""What is recorded as a CUDA graph neither reads from the host nor tells it anything: no GPU is needed to see that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from policy_helpers import SIZES
from torch import Tensor, nn

from rllib_efficientzero.gradient_step import GradientStep
from rllib_efficientzero.losses import loss_and_observed, policy_losses_of
from rllib_efficientzero.mcts import SearchConfig
from rllib_efficientzero.mcts.leaf_evaluator import LeafEvaluator
from rllib_efficientzero.mcts.parts import _node_actions
from rllib_efficientzero.models import build_consistency_heads, build_network
from rllib_efficientzero.models.action_distributions import Actions, IndependentCategoricals, SquashedGaussian
from rllib_efficientzero.models.unroll import Unrolled, unroll, unroll_planes

BATCH, STEPS, SAMPLES = 6, 5, 4
FROM_HOST = ("as_tensor", "tensor", "from_numpy")
TO_HOST = ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__")
SHAPES = {"images": (4, 32, 32, 1), "vectors": (2, 5)}
ACTIONS = {"numbered": 3, "vectors": SquashedGaussian(2), "choices": IndependentCategoricals([3, 4])}


@contextlib.contextmanager
def without_the_host() -> Iterator[None]:
    """Whoever needs the host within the block fails."""

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the host takes part in what is to be recorded")

    with pytest.MonkeyPatch.context() as patch:
        for name in FROM_HOST:
            patch.setattr(torch, name, refused)
        for name in TO_HOST:
            patch.setattr(Tensor, name, refused)
        yield


def train_batch(shape: tuple[int, ...], actions: Actions) -> dict[str, Tensor]:
    frames_shape = (BATCH, shape[0] + STEPS, *shape[1:])
    is_image = len(shape) == 4
    frames = torch.randint(0, 255, frames_shape, dtype=torch.uint8) if is_image else torch.randn(frames_shape)
    num_candidates = actions if isinstance(actions, int) else SAMPLES
    batch = {
        "frames": frames,
        "target_policy": torch.softmax(torch.randn(BATCH, STEPS + 1, num_candidates), dim=-1),
        "target_value": torch.randn(BATCH, STEPS + 1),
        "target_value_prefix": torch.randn(BATCH, STEPS),
        "mask": torch.ones(BATCH, STEPS),
        "weights": torch.ones(BATCH),
        "position_ids": torch.arange(BATCH),
        "shift": torch.zeros(BATCH, 2, 2, dtype=torch.int64),
        "intensity": torch.ones(BATCH, 2),
    }
    if isinstance(actions, int):
        return batch | {"actions": torch.randint(0, actions, (BATCH, STEPS))}
    drawn = torch.zeros(BATCH, STEPS + 1, SAMPLES, actions.action_size)
    return batch | {"actions": drawn[:, 1:, 0], "target_actions": drawn}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ACTIONS)
@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adam])
def test_an_update_stays_on_the_device(shape: str, kind: str, optimizer_class: Any) -> None:
    actions, stacked = ACTIONS[kind], SHAPES[shape]
    network = build_network(stacked, actions, SIZES)
    consistency = build_consistency_heads(network.latent_shape, SIZES)
    module = nn.ModuleList([network, consistency])
    coefficients = {"policy": 1.0, "value": 0.25, "value_prefix": 1.0, "consistency": 2.0}
    coefficients |= {} if isinstance(actions, int) else {"entropy": 1e-3}

    def compute(batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        root, targets = unroll_planes(batch, use_augmentation=True)
        predicted = unroll(
            network,
            root,
            batch["actions"],
            consistency=consistency,
            target_planes=targets,
            value_prefix_horizon=5,
        )
        return loss_and_observed(predicted, batch, coefficients, policy_losses_of(network.distribution))

    step = GradientStep(compute, optimizer_class(module.parameters(), lr=0.1, fused=True), module, max_norm=5.0)
    batch = train_batch(stacked, actions)
    step(batch, 0.1)  # as the calls before a recording
    with without_the_host():
        step._on_device(torch.full((), 0.1, dtype=torch.float64), *(batch[name] for name in sorted(batch)))


def test_losses_are_compiled_as_a_whole() -> None:
    """And stay what they are."""
    batch = train_batch(SHAPES["vectors"], 3)
    how = {"policy": 1.0, "value": 0.25, "value_prefix": 1.0}, policy_losses_of(None)
    policy = torch.randn(BATCH, STEPS + 1, 3)
    logits = torch.randn(BATCH, STEPS + 1, 2 * SIZES.support_size + 1)
    predicted = Unrolled(policy.requires_grad_(), logits.requires_grad_(), logits[:, 1:], None, None)
    found = torch.compile(loss_and_observed, backend="aot_eager", fullgraph=True)(predicted, batch, *how)
    expected = loss_and_observed(predicted, batch, *how)
    torch.testing.assert_close(found, expected)
    assert list(found[1]) == list(expected[1])
    leaves = policy, logits
    torch.testing.assert_close(torch.autograd.grad(found[0], leaves), torch.autograd.grad(expected[0], leaves))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ACTIONS)
def test_simulations_stay_on_the_device(shape: str, kind: str) -> None:
    stacked = SHAPES[shape]
    network = build_network(stacked, ACTIONS[kind], SIZES).eval()
    planes = torch.rand(BATCH, stacked[0] * stacked[-1], *stacked[1:-1])
    config = SearchConfig(num_simulations=3, num_sampled_actions=SAMPLES)
    with torch.inference_mode():
        root = network.initial_inference(planes)
        node_actions, _ = _node_actions(network, root, config, BATCH)
        evaluator = LeafEvaluator(network, root, BATCH, 3, 5, node_actions)
        with without_the_host():
            evaluator._evaluate(1)
            network.initial_inference(planes)
            network.value(planes)
