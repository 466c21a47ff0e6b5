"""The learner's forward pass: unroll the model along stored actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from rllib_efficientzero.models.augmentation import augment
from rllib_efficientzero.models.consistency import ConsistencyHeads
from rllib_efficientzero.models.network import EfficientZeroNetwork
from rllib_efficientzero.models.observations import (
    Stacks,
    has_kernel_for,
    observation_planes,
    unrolled_stacks,
    window_planes,
)
from rllib_efficientzero.models.plane_layout import PLAIN, PlaneLayout


class Unrolled(NamedTuple):
    """Predictions for B positions and K imagined steps."""

    policy_logits: Tensor  # [B, K+1, A], or [B, K+1, P] parameters of the distribution that actions are drawn from
    value_logits: Tensor  # [B, K+1, support]
    value_prefix_logits: Tensor  # [B, K, support]
    projection: Tensor | None  # [B, K, Z], predictor(projector(imagined latent))
    target_projection: Tensor | None  # [B, K, Z], projector(latent of the real observation), no gradient


def unroll_planes(
    batch: Mapping[str, Tensor],
    *,
    use_augmentation: bool,
    dtype: torch.dtype = torch.float32,
    layout: PlaneLayout = PLAIN,
) -> tuple[Tensor, Tensor]:
    """Turns a batch's raw frames into the network inputs that `unroll` takes.

    Args:
        batch: `frames` `[B, S + K, ...]`, `actions` `[B, K, ...]`, and for images `shift` and `intensity`; see
            `targets.Reanalyzer.train_batch`.
        use_augmentation: shift and scale images.
        dtype: of the result.
        layout: see `window_planes`.

    Returns:
        Root planes `[B, ...]` and target planes `[B, K, ...]`.
    """
    frames, unroll_steps = batch["frames"], batch["actions"].shape[1]
    frame_stack = frames.shape[1] - unroll_steps
    if has_kernel_for(frames):
        augmentation = (batch["shift"], batch["intensity"]) if use_augmentation else None
        return _planes_by_kernel(frames, frame_stack, unroll_steps, dtype, augmentation, layout)
    planes = observation_planes(frames, dtype)
    width = planes.shape[1] // frames.shape[1]  # planes, or features, per frame
    # Two augmentations: one for the root's stack, another for the frames of all target stacks.
    root, following = planes[:, : frame_stack * width], planes[:, width:]
    if use_augmentation and planes.ndim == 4:
        (of_root, of_following), intensity = batch["shift"].unbind(1), batch["intensity"]
        root = augment(root, of_root, intensity[:, 0])
        following = augment(following, of_following, intensity[:, 1])
    return root, unrolled_stacks(following, frame_stack, unroll_steps)


def _planes_by_kernel(
    frames: Tensor,
    frame_stack: int,
    unroll_steps: int,
    dtype: torch.dtype,
    augmentation: tuple[Tensor, Tensor] | None,
    layout: PlaneLayout,
) -> tuple[Tensor, Tensor]:
    """As `unroll_planes`, with one kernel per result; `augmentation`: shifts `[B, 2, 2]`, intensities `[B, 2]`."""
    batch = len(frames)
    rows, steps = torch.arange(batch, device=frames.device), torch.arange(1, unroll_steps + 1, device=frames.device)

    def planes(steps: Tensor, branch: int) -> Tensor:
        repeats = len(steps)
        chosen = None
        if augmentation is not None:
            shift, intensity = (part[:, branch] for part in augmentation)
            chosen = (shift.repeat(repeats, 1), intensity.repeat(repeats))
        stacks = Stacks(frames, rows.repeat(repeats), steps.repeat_interleave(batch), frame_stack)
        return window_planes(stacks, dtype, augmentation=chosen, layout=layout)

    # In memory the steps follow each other, as in `unrolled_stacks`.
    return planes(torch.zeros_like(steps[:1]), 0), planes(steps, 1).unflatten(0, (unroll_steps, batch)).transpose(0, 1)


def unroll(
    network: EfficientZeroNetwork,
    root_planes: Tensor,
    actions: Tensor,
    *,
    consistency: ConsistencyHeads | None,
    target_planes: Tensor,
    value_prefix_horizon: int,
) -> Unrolled:
    """Unrolls the model for K steps. A pure function of tensors, so that it can be compiled and recorded.

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
        # All gradient that reaches an imagined latent is halved, from its own heads and from later steps (0.5^k in all
        # at step k), so that the dynamics' gradient does not grow with the depth; MuZero, appendix G.
        latent = _with_half_gradient(network.imagine(latent, actions[:, k]))
        reward_hidden = network.advance_value_prefix(latent, reward_hidden)
        latents.append(latent)
        reward_hiddens.append(reward_hidden)
        if (k + 1) % value_prefix_horizon == 0:
            reward_hidden = torch.zeros_like(reward_hidden)

    # The heads see all steps in one batch: that makes fewer and larger calls, and normalises all steps with the same
    # statistics, as in a search, which evaluates leaves of all depths with the same running averages.
    # The batch is ordered by step: concatenated like this, channels-last latents stay channels last.
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


def _with_half_gradient(x: Tensor) -> Tensor:
    """Returns x unchanged, but halves its gradient. Halves are exact, and unlike a hook this can be compiled."""
    return 0.5 * x + 0.5 * x.detach()
