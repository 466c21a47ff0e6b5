"""The policy loss over sampled actions, by hand and by finite differences."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rllib_efficientzero.losses import losses, sampled_policy_losses, total_loss
from rllib_efficientzero.models.action_distributions import IndependentCategoricals, SquashedGaussian
from rllib_efficientzero.models.unroll import Unrolled

B, K, A, SUPPORT = 3, 2, 4, 2
FAMILIES = [SquashedGaussian(2), IndependentCategoricals([2, 3])]


def setup(family: Any, seed: int = 0) -> tuple[Unrolled, dict[str, Tensor]]:
    random = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    predicted = Unrolled(
        rand(B, K + 1, family.policy_size).requires_grad_(),
        rand(B, K + 1, 2 * SUPPORT + 1),
        rand(B, K, 2 * SUPPORT + 1),
        None,
        None,
    )
    noise = rand(B, K + 1, A, family.noise_size)
    actions = family.sample(torch.zeros(B * (K + 1), family.policy_size), noise.flatten(0, 1), 1.0)
    policy = rand(B, K + 1, A).softmax(dim=-1)
    policy[2, 1:] = 0.0  # beyond an episode's end
    batch = {
        "target_policy": policy,
        "target_actions": actions.unflatten(0, (B, K + 1)),
        "target_value": rand(B, K + 1),
        "target_value_prefix": rand(B, K),
        "mask": torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]]),
        "weights": torch.tensor([1.0, 0.5, 0.25]),
    }
    return predicted, batch


def test_policy_loss_by_hand() -> None:
    # One action dimension, standard normal before the squashing; a = tanh(u).
    policy = torch.zeros(1, 1, 2)
    u = torch.tensor([0.0, 1.0, -0.5])
    target = torch.tensor([[[0.5, 0.3, 0.2]]])
    batch = {"target_policy": target, "target_actions": torch.tanh(u)[None, None, :, None]}
    found = sampled_policy_losses(SquashedGaussian(1))(policy, batch)["policy"]
    log_density = [-0.5 * x**2 - 0.5 * math.log(2 * math.pi) - math.log(1 - math.tanh(x) ** 2) for x in u.tolist()]
    expected = -sum(weight * log for weight, log in zip((0.5, 0.3, 0.2), log_density, strict=True))
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_terms_are_masked_and_where_there_is_no_target_nothing_is_lost(family: Any) -> None:
    predicted, batch = setup(family)
    terms = losses(predicted, batch, sampled_policy_losses(family))
    assert list(terms) == ["policy", "entropy", "value", "value_prefix"]
    log_prob, entropy = (
        family.log_prob(predicted.policy_logits, batch["target_actions"]),
        family.entropy(predicted.policy_logits),
    )
    for row, steps in enumerate(((0, 1, 2), (0, 1), (0,))):
        policy = -sum((batch["target_policy"][row, k] * log_prob[row, k]).sum() for k in steps)
        torch.testing.assert_close(terms["policy"][row], policy)
        torch.testing.assert_close(terms["entropy"][row], -sum(entropy[row, k] for k in steps))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_by_finite_differences(family: Any) -> None:
    predicted, batch = setup(family)
    coefficients = {"policy": 1.0, "entropy": 0.3, "value": 0.0, "value_prefix": 0.0}

    def loss(policy: Tensor) -> Tensor:
        terms = losses(predicted._replace(policy_logits=policy), batch, sampled_policy_losses(family))
        return total_loss(terms, coefficients, batch["weights"], steps=K)

    (gradient,) = torch.autograd.grad(loss(predicted.policy_logits), predicted.policy_logits)
    assert gradient[2, 1:].abs().max() == 0
    step, plain = 1e-2, predicted.policy_logits.detach()
    for index in [(0, 0, 0), (0, 2, 3), (1, 1, 1), (2, 0, 2), (1, 2, 0)]:
        shift = torch.zeros_like(plain)
        shift[index] = step
        slope = (loss(plain + shift) - loss(plain - shift)) / (2 * step)
        assert gradient[index].item() == pytest.approx(slope.item(), rel=2e-2, abs=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_least_loss_is_where_the_search_wants_the_policy(family: Any) -> None:
    """Fitted to one target, the likeliest of the sampled actions is the one with the most weight."""
    torch.manual_seed(0)
    policy = torch.zeros(1, 1, family.policy_size, requires_grad=True)
    actions = family.sample(torch.zeros(1, family.policy_size), torch.randn(1, 6, family.noise_size), 1.0)[None]
    target = torch.full((1, 1, 6), 0.02)
    target[..., 4] = 0.9
    batch = {"target_policy": target, "target_actions": actions}
    optimizer = torch.optim.Adam([policy], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        sampled_policy_losses(family)(policy, batch)["policy"].sum().backward()
        optimizer.step()
    log_prob = family.log_prob(policy, actions)[0, 0]
    assert log_prob[4] == log_prob.max()
