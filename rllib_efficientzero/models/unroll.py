"""The learner's forward pass: unroll the model along stored actions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rllib_efficientzero.models.consistency import ConsistencyHeads
from rllib_efficientzero.models.network import EfficientZeroNetwork


class Unrolled(NamedTuple):
    """Predictions for B positions and K imagined steps."""

    policy_logits: Tensor  # [B, K+1, A], or [B, K+1, P] parameters of the distribution that actions are drawn from
    value_logits: Tensor  # [B, K+1, support]
    value_prefix_logits: Tensor  # [B, K, support]
    projection: Tensor | None  # [B, K, P], predictor(projector(imagined latent))
    target_projection: Tensor | None  # [B, K, P], projector(latent of the real observation), no gradient


def unroll(
    network: EfficientZeroNetwork,
    root_planes: Tensor,
    actions: Tensor,
    *,
    consistency: ConsistencyHeads | None,
    target_planes: Tensor,
    value_prefix_horizon: int,
) -> Unrolled:
    """Unroll K steps.

    Args:
        network: in train mode.
        root_planes: network input at the sampled positions, B of them.
        actions: `[B, K]`, or `[B, K, D]` action vectors.
        consistency: heads of the consistency loss; None leaves its projections out.
        target_planes: network input of the K observations that followed, `[B, K, ...]`; used with `consistency` only.
        value_prefix_horizon: steps after which the LSTM's state is reset.
    """
    latent = network.represent(root_planes)
    reward_hidden = network.initial_reward_hidden(latent)
    latents, reward_hiddens = [latent], []
    for k in range(actions.shape[1]):
        latent, reward_hidden = network.step(latent, reward_hidden, actions[:, k])
        if latent.requires_grad:
            # Halves all gradient that reaches an imagined latent, from its own heads and from later steps (0.5^k in
            # all at step k), so that the dynamics' gradient does not grow with the depth; MuZero, appendix G.
            latent.register_hook(_halve)
        latents.append(latent)
        reward_hiddens.append(reward_hidden)
        if (k + 1) % value_prefix_horizon == 0:
            reward_hidden = torch.zeros_like(reward_hidden)

    # The heads see all steps in one batch: fewer and larger calls, and the statistics with which they will be
    # normalised when searching, where leaves of all depths are evaluated by the same running averages.
    # Step after step, since latents laid out channels last stay so when they are put one after the other.
    steps = actions.shape[1]
    policy_logits, value_logits = network.predict(torch.cat(latents))
    value_prefix_logits = network.read_value_prefix(torch.cat(reward_hiddens))
    projection = target_projection = None
    if consistency is not None:
        projection = _by_position(consistency.predict(torch.cat(latents[1:])), steps)
        # The target branch: online weights, no gradient (SimSiam has no second network).
        with torch.no_grad():
            targets = network.represent(target_planes.transpose(0, 1).flatten(0, 1))
            target_projection = _by_position(consistency.project(targets), steps)
    return Unrolled(
        _by_position(policy_logits, steps + 1),
        _by_position(value_logits, steps + 1),
        _by_position(value_prefix_logits, steps),
        projection,
        target_projection,
    )


def _by_position(x: Tensor, steps: int) -> Tensor:
    """`[K * B, ...] -> [B, K, ...]`."""
    return x.unflatten(0, (steps, -1)).transpose(0, 1).contiguous()


def _halve(gradient: Tensor) -> Tensor:
    return 0.5 * gradient
