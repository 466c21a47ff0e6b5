"""Families of distributions over action vectors, for action spaces with too many actions to enumerate.

The policy head predicts the parameters of such a distribution; the search chooses between actions drawn from it (Hubert
et al. 2021, "Learning and planning in complex action spaces"; EfficientZero V2, section 4.1).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class ActionDistribution(Protocol):
    """The interface of a family, as networks, search and losses use it.

    In the shapes below, `...` stands for any axes, M for a number of actions, P for `policy_size`, D for `action_size`,
    Z for `noise_size`, E for `encoded_size`.
    """

    policy_size: int
    """P: numbers that the policy head predicts"""
    action_size: int
    """D: numbers in an action"""
    noise_size: int
    """Z: random numbers from which an action is sampled"""
    encoded_size: int
    """E: numbers that encode an action as an input of the dynamics"""
    dtype: np.dtype[Any]
    """of the actions that are passed to an environment"""

    def encode(self, action: Tensor) -> Tensor:
        """`[B, D]` -> `[B, E]` float32."""

    def draw_noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Draws the noise of `shape` actions, `[*shape, Z]` float32. Zero noise gives the likeliest action."""

    def sample(self, policy: Tensor, noise: Tensor, width: Tensor | float) -> Tensor:
        """Computes actions from noise.

        Args:
            policy: `[B, P]`.
            noise: `[B, M, Z]`.
            width: `[M, 1]`, or one for all: 1 samples from the policy, larger numbers from a wider one with the same
                likeliest action.

        Returns:
            `[B, M, D]` float32.
        """

    def log_prob(self, policy: Tensor, actions: Tensor) -> Tensor:
        """`[..., P]`, `[..., M, D]` -> `[..., M]` float32 logarithms of probabilities, or of probability densities."""

    def entropy(self, policy: Tensor) -> Tensor:
        """`[..., P]` -> `[...]` float32, in nats."""

    def draw_uniform(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Draws uniform actions `[*shape, D]` float32, independent of the policy."""


class SquashedGaussian:
    """Actions in `[-1, 1]^D`: the hyperbolic tangent of independent normal variables.

    The first half of the 2 D parameters gives the means, within +-5, the other half the standard deviations, at least
    0.1. Both are smooth functions of the head's output; zeros give mean 0 and standard deviation 1.
    """

    LARGEST_MEAN = 5.0
    SMALLEST_STD = 0.1
    LARGEST_ACTION = 0.999
    """Actions are clipped to +- this, so that their densities stay finite."""

    def __init__(self, size: int) -> None:
        self.action_size = self.noise_size = self.encoded_size = size
        self.policy_size = 2 * size
        self.dtype = np.dtype(np.float32)

    def encode(self, action: Tensor) -> Tensor:
        return action.float()

    def draw_noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal((*shape, self.noise_size), dtype=np.float32)

    def sample(self, policy: Tensor, noise: Tensor, width: Tensor | float) -> Tensor:
        mean, std = self._moments(policy.unsqueeze(-2))
        return torch.tanh(mean + width * std * noise).clamp(-self.LARGEST_ACTION, self.LARGEST_ACTION)

    def log_prob(self, policy: Tensor, actions: Tensor) -> Tensor:
        mean, std = self._moments(policy.unsqueeze(-2))
        actions = actions.clamp(-self.LARGEST_ACTION, self.LARGEST_ACTION)
        distance = (torch.atanh(actions) - mean) / std
        normal = -0.5 * distance.square() - std.log() - 0.5 * math.log(2.0 * math.pi)
        return (normal - torch.log1p(-actions.square())).sum(dim=-1)

    def entropy(self, policy: Tensor) -> Tensor:
        """The normal variables' entropy plus the mean logarithm of the slope of tanh, which is found by quadrature."""
        mean, std = self._moments(policy)
        nodes, weights = _quadrature(mean.device)
        at = mean.unsqueeze(-1) + std.unsqueeze(-1) * nodes
        log_slope = 2.0 * (math.log(2.0) - at - F.softplus(-2.0 * at))
        normal = std.log() + 0.5 * math.log(2.0 * math.pi * math.e)
        return (normal + (log_slope * weights).sum(dim=-1)).sum(dim=-1)

    def draw_uniform(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        drawn = rng.uniform(-self.LARGEST_ACTION, self.LARGEST_ACTION, size=(*shape, self.action_size))
        return drawn.astype(np.float32)

    def _moments(self, policy: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = policy.float().chunk(2, dim=-1)
        mean = self.LARGEST_MEAN * torch.tanh(mean / self.LARGEST_MEAN)
        return mean, self.SMALLEST_STD + F.softplus(spread + _SPREAD_OF_ONE)


_SPREAD_OF_ONE = math.log(math.expm1(1.0 - SquashedGaussian.SMALLEST_STD))


@functools.cache
def _quadrature(device: torch.device) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes and weights, `[24]` float32 each, for means over a standard normal variable.

    Cached, since a copy from the host in every call could not be recorded in a CUDA graph.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    with torch.inference_mode(False):  # the first caller may be in inference mode, while later ones need gradients
        parts = (torch.as_tensor(part, dtype=torch.float32, device=device) for part in (nodes, weights / weights.sum()))
        return tuple(parts)  # type: ignore[return-value]


class IndependentCategoricals:
    """One choice per factor: component d of an action is one of 0 .. sizes[d] - 1, independent of the others.

    The parameters are the concatenated logits of all factors.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = [int(size) for size in sizes]
        self.action_size = len(self.sizes)
        self.policy_size = self.noise_size = self.encoded_size = sum(self.sizes)
        self.dtype = np.dtype(np.int64)

    def encode(self, action: Tensor) -> Tensor:
        """One-hot, factor by factor."""
        choices = action.long().unbind(dim=-1)
        return torch.cat([F.one_hot(choice, size) for choice, size in zip(choices, self.sizes, strict=True)], dim=-1)

    def draw_noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Draws Gumbel noise: the index of the largest sum of logit and noise is a sample of the categorical."""
        return rng.gumbel(size=(*shape, self.noise_size)).astype(np.float32)

    def sample(self, policy: Tensor, noise: Tensor, width: Tensor | float) -> Tensor:
        """See `ActionDistribution`; `width` is the temperature of all factors."""
        scores = policy.float().unsqueeze(-2) / width + noise
        return torch.stack([part.argmax(dim=-1) for part in scores.split(self.sizes, dim=-1)], dim=-1).float()

    def log_prob(self, policy: Tensor, actions: Tensor) -> Tensor:
        total = torch.zeros(actions.shape[:-1], device=actions.device)
        for logits, choice in zip(policy.float().split(self.sizes, dim=-1), actions.long().unbind(dim=-1), strict=True):
            total = total + torch.log_softmax(logits, dim=-1).gather(-1, choice)
        return total

    def entropy(self, policy: Tensor) -> Tensor:
        factors = (torch.log_softmax(logits, dim=-1) for logits in policy.float().split(self.sizes, dim=-1))
        return torch.stack([-(logs.exp() * logs).sum(dim=-1) for logs in factors]).sum(dim=0)

    def draw_uniform(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.integers(self.sizes, size=(*shape, self.action_size)).astype(np.float32)


Actions = int | ActionDistribution
"""A policy's actions: the number of enumerated actions, or the distribution that actions are drawn from."""


def actions_of(space: gym.Space) -> Actions:
    """The actions of a space that `env.spaces` converted.

    Raises:
        ValueError: the space is neither Discrete from 0 on, nor Box(-1, 1, [D]), nor MultiDiscrete from 0 on.
    """
    if isinstance(space, gym.spaces.Discrete) and space.start == 0:
        return int(space.n)
    if isinstance(space, gym.spaces.MultiDiscrete) and space.nvec.ndim == 1 and not np.any(space.start):
        return IndependentCategoricals(space.nvec.tolist())
    is_vector = isinstance(space, gym.spaces.Box) and len(space.shape) == 1
    if is_vector and np.all(space.low == -1.0) and np.all(space.high == 1.0):
        return SquashedGaussian(space.shape[0])
    raise ValueError(
        f"EfficientZero needs actions that are Discrete, MultiDiscrete, or Box(-1, 1) of one axis, not {space}."
    )
