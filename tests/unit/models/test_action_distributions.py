"""Densities, entropies and samples by hand, or by another way to the same number."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_efficientzero.models.action_distributions import IndependentCategoricals, SquashedGaussian, actions_of


def gaussian_policy(means: list[float], stds: list[float]) -> torch.Tensor:
    """What a head must predict for these moments: inverts 5 tanh(m / 5) and 0.1 + softplus(s + log(e^0.9 - 1))."""
    raw_means = [5.0 * math.atanh(mean / 5.0) for mean in means]
    raw_spreads = [math.log(math.expm1(std - 0.1)) - math.log(math.expm1(0.9)) for std in stds]
    return torch.tensor(raw_means + raw_spreads, dtype=torch.float64)


def density(action: float, mean: float, std: float) -> float:
    """Of tanh(X), X normal, at one action."""
    normal = math.exp(-0.5 * ((math.atanh(action) - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
    return normal / (1 - action**2)


def test_density_of_a_squashed_gaussian() -> None:
    policy = gaussian_policy([0.3, -1.0], [0.5, 2.0])
    actions = torch.tensor([[0.2, -0.9], [0.0, 0.5], [0.99, 0.0]])
    found = SquashedGaussian(2).log_prob(policy, actions)
    expected = [
        math.log(density(first, 0.3, 0.5) * density(second, -1.0, 2.0)) for first, second in actions.double().tolist()
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_density_integrates_to_one() -> None:
    grid = torch.linspace(-0.999, 0.999, 200_001)
    for mean, std in ((0.0, 1.0), (0.8, 0.3)):
        logs = SquashedGaussian(1).log_prob(gaussian_policy([mean], [std]), grid[:, None])
        assert torch.trapezoid(logs.exp(), grid).item() == pytest.approx(1.0, abs=2e-3)


def test_actions_at_the_ends_have_finite_densities_and_gradients() -> None:
    policy = torch.zeros(2, requires_grad=True)
    logs = SquashedGaussian(1).log_prob(policy, torch.tensor([[1.0], [-1.0], [0.999]]))
    logs.sum().backward()
    assert torch.isfinite(logs).all()
    assert torch.isfinite(policy.grad).all()
    assert logs[0] == logs[2]


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.0, 0.15), (2.0, 0.5), (-1.0, 3.0)])
def test_entropy_of_a_squashed_gaussian(mean: float, std: float) -> None:
    # By integrating -p log p over the normal variable.
    x = np.linspace(mean - 10 * std, mean + 10 * std, 400_001)
    p = np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
    log_slope = 2 * (math.log(2) - x - np.logaddexp(0, -2 * x))
    expected = np.trapezoid(p * (0.5 * math.log(2 * math.pi * math.e * std**2) + log_slope), x)
    found = SquashedGaussian(1).entropy(gaussian_policy([mean], [std])).item()
    assert found == pytest.approx(expected, abs=0.02)


def test_a_head_that_predicts_zeros_is_wide_and_a_wild_one_is_bounded() -> None:
    mean, std = SquashedGaussian(1)._moments(torch.zeros(2))
    assert (mean.item(), std.item()) == (0.0, pytest.approx(1.0))
    mean, std = SquashedGaussian(1)._moments(torch.tensor([1e6, -1e6]))
    assert (mean.item(), std.item()) == (5.0, pytest.approx(0.1))


def test_samples_of_a_squashed_gaussian() -> None:
    policy = gaussian_policy([0.5], [0.4]).float()[None]
    family = SquashedGaussian(1)
    noise = torch.tensor([[[0.0], [1.0], [1.0], [100.0]]])
    width = torch.tensor([[1.0], [1.0], [3.0], [1.0]])
    expected = [math.tanh(0.5), math.tanh(0.9), math.tanh(0.5 + 3 * 0.4), 0.999]
    np.testing.assert_allclose(family.sample(policy, noise, width)[0, :, 0], expected, rtol=1e-5)


def test_categoricals_by_hand() -> None:
    family = IndependentCategoricals([2, 3])
    policy = torch.tensor([0.0, math.log(3.0), math.log(1.0), math.log(2.0), math.log(5.0)])
    found = family.log_prob(policy, torch.tensor([[1.0, 2.0], [0.0, 0.0]])).exp()
    np.testing.assert_allclose(found, [3 / 4 * 5 / 8, 1 / 4 * 1 / 8], rtol=1e-6)
    entropy = -sum(p * math.log(p) for p in (1 / 4, 3 / 4, 1 / 8, 2 / 8, 5 / 8))
    assert family.entropy(policy).item() == pytest.approx(entropy, rel=1e-6)
    assert family.encode(torch.tensor([[1, 0], [0, 2]])).tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]
    likeliest = family.sample(policy[None], torch.zeros(1, 1, 5), 1.0)
    assert likeliest.tolist() == [[[1.0, 2.0]]]


@pytest.mark.parametrize("width", [1.0, 3.0])
def test_frequencies_of_sampled_choices(width: float) -> None:
    family = IndependentCategoricals([2, 3])
    policy = torch.tensor([[0.0, 1.0, -1.0, 0.0, 2.0]])
    noise = torch.from_numpy(family.draw_noise(np.random.default_rng(0), (1, 20_000)))
    samples = family.sample(policy, noise, torch.full((20_000, 1), width))[0]
    for factor, logits in enumerate((policy[0, :2], policy[0, 2:])):
        shares = torch.bincount(samples[:, factor].long(), minlength=len(logits)) / 20_000
        np.testing.assert_allclose(shares, torch.softmax(logits / width, dim=0), atol=0.015)


def test_uniform_actions_are_in_their_space() -> None:
    rng = np.random.default_rng(0)
    vectors = SquashedGaussian(3).draw_uniform(rng, (500,))
    assert vectors.shape == (500, 3)
    assert vectors.min() < -0.9
    assert vectors.max() > 0.9
    assert np.abs(vectors).max() < 1
    choices = IndependentCategoricals([2, 5]).draw_uniform(rng, (500,))
    assert [set(column) for column in choices.T] == [{0.0, 1.0}, {0.0, 1.0, 2.0, 3.0, 4.0}]


def test_actions_of_spaces() -> None:
    assert actions_of(gym.spaces.Discrete(3)) == 3
    assert isinstance(actions_of(gym.spaces.Box(-1, 1, (2,))), SquashedGaussian)
    assert actions_of(gym.spaces.MultiDiscrete([3, 4])).sizes == [3, 4]
    for space in (gym.spaces.Box(-2, 2, (2,)), gym.spaces.Box(-1, 1, (2, 2)), gym.spaces.Discrete(3, start=1)):
        with pytest.raises(ValueError, match="needs actions that are"):
            actions_of(space)
