"""Windows: everything the targets and the losses of one batch of sampled positions are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rllib_efficientzero.replay.episode import (
    ACTION_MASK,
    ACTIONS,
    REWARDS,
    ROOT_VALUE,
    SAMPLED_ACTIONS,
    VISIT_POLICY,
    StoredEpisode,
)
from rllib_efficientzero.replay.frame_sources import FrameSource, decode_on_host


@dataclass(frozen=True)
class WindowShape:
    """How far a window reaches around its position t."""

    frame_stack: int
    """S: frames per stacked observation."""
    unroll_steps: int
    """K: steps the model is unrolled."""
    td_steps: int
    """n: the largest bootstrap distance."""

    def __post_init__(self) -> None:
        if self.frame_stack < 1 or self.unroll_steps < 0 or self.td_steps < 0:
            raise ValueError(f"Need frame_stack >= 1, unroll_steps >= 0 and td_steps >= 0, got {self}.")

    @property
    def num_frames(self) -> int:
        """S-1 + K+1 + n: stacks for the times t .. t+K+n."""
        return self.frame_stack + self.unroll_steps + self.td_steps


@dataclass(frozen=True)
class Windows:
    """A batch of B sampled positions with what surrounds them.

    t is the sampled time within its episode, T the episode's length so far; S = frame_stack, K = unroll_steps,
    n = td_steps, A = number of actions. Where actions are sampled they are vectors of size D, and A is the number of
    those that a search chose between.

    Example:
        >>> def stack(windows: Windows, k: int, frame_stack: int) -> np.ndarray:
        ...     "Stacked observations [B, S, *obs_shape] of time t + k."
        ...     return windows.frames[:, k : k + frame_stack]
    """

    position_ids: npt.NDArray[np.int64]
    """`[B]` global ids of the sampled positions, for `update_priorities` and as the samples' age reference"""
    weights: npt.NDArray[np.float32]
    """`[B]` importance weights (N * P)^-beta, divided by the batch's largest"""
    num_added: int
    """steps ever added to the replay when the batch was drawn; `num_added - position_id` is a sample's age"""
    frames: npt.NDArray[Any] | Tensor
    """`[B, S-1 + K+1 + n, *obs_shape]` in the observations' dtype, where the replay's frame source makes them. Frame j
    belongs to time t - (S-1) + j. The episode's first frame is repeated before its beginning, its last one (so far)
    after its end."""
    actions: npt.NDArray[Any]
    """i64`[B, K]` or `[B, K, D]` actions of the times t .. t+K-1; from T on random ones: uniformly if they are
    enumerated, else others of the batch"""
    rewards: npt.NDArray[np.float32]
    """`[B, K+n]` rewards of the times t .. t+K+n-1; from T on 0"""
    visit_policy: npt.NDArray[np.float32]
    """`[B, K+1, A]` stored search policies of the times t .. t+K; from T on 0"""
    root_value: npt.NDArray[np.float32]
    """`[B, K+1]` stored root values of the times t .. t+K; from T on 0"""
    action_mask: npt.NDArray[np.uint8] | None
    """`[B, K+1+n, A]` legal actions (1) of the times t .. t+K+n, wherever a target may search; after T that of T is
    repeated. A row without any legal action (a terminal observation) becomes all 1, since no search could be run with
    it. None: all are always legal."""
    steps_left: npt.NDArray[np.int64]
    """`[B]` T - t, at least 1: number of actions known from t on"""
    terminated: npt.NDArray[np.bool_]
    """`[B]` whether the episode terminated at T. If not (truncated, ongoing or cut off), values must be bootstrapped
    from the observation at T."""
    seed: int
    """seeds whatever is random in making this batch's targets, so that the same windows give the same targets"""
    sampled_actions: npt.NDArray[np.float32] | None = None
    """`[B, K+1, A, D]` the actions that `visit_policy` is about; from T on 0. None: all are enumerated"""

    def __len__(self) -> int:
        return len(self.position_ids)

    def split(self, num_shards: int) -> list[Windows]:
        """Contiguous shards of (nearly) equal size, each with its own seed; views, no copies.

        Raises:
            ValueError: there are more shards than samples.
        """
        if not 1 <= num_shards <= len(self):
            raise ValueError(f"Cannot split {len(self)} windows into {num_shards} shards.")
        if num_shards == 1:
            return [self]
        bounds = np.linspace(0, len(self), num_shards + 1).astype(int)
        seeds = [_draw_seed(np.random.default_rng([self.seed, shard])) for shard in range(num_shards)]
        return [
            self._slice(int(low), int(high), seed)
            for low, high, seed in zip(bounds[:-1], bounds[1:], seeds, strict=True)
        ]

    def _slice(self, low: int, high: int, seed: int) -> Windows:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        sliced: dict[str, Any] = {name: v[low:high] for name, v in values.items() if isinstance(v, np.ndarray | Tensor)}
        return replace(self, **sliced | {"seed": seed})


def gather_windows(
    samples: Sequence[tuple[StoredEpisode, int]],
    shape: WindowShape,
    rng: np.random.Generator,
    *,
    position_ids: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float32],
    num_added: int,
    frame_source: FrameSource = decode_on_host,
) -> Windows:
    """The windows around `samples`, B pairs of an episode and a time t < T in it. All episodes share one codec.

    Args:
        samples: the B sampled times.
        shape: how far windows reach.
        rng: source of the actions beyond the ends and of the batch's seed.
        position_ids: `[B]`, taken over into the result like the next two.
        weights: `[B]`
        num_added: steps ever added.
        frame_source: makes their frames.
    """
    batch, first = len(samples), samples[0][0]
    reach = shape.unroll_steps + shape.td_steps
    unroll, num_actions, size = shape.unroll_steps, first.actions.num_actions, first.actions.size
    codes: list[bytes] = []
    for episode, t in samples:
        codes += episode.frames_between(t - (shape.frame_stack - 1), t + reach)
    # All of the batch in one call: none is decoded twice, those beyond an episode's ends neither.
    frames = frame_source(first.codec, codes)
    windows = Windows(
        position_ids=position_ids,
        weights=weights,
        num_added=num_added,
        frames=frames.reshape(batch, shape.num_frames, *first.codec.shape),
        actions=_random_actions(samples, (batch, unroll), rng),
        rewards=np.zeros((batch, reach), np.float32),
        visit_policy=np.zeros((batch, unroll + 1, num_actions), np.float32),
        root_value=np.zeros((batch, unroll + 1), np.float32),
        action_mask=np.empty((batch, reach + 1, num_actions), np.uint8) if first.has_action_mask else None,
        steps_left=np.array([len(episode) - t for episode, t in samples], np.int64),
        terminated=np.array([episode.terminated for episode, _ in samples], np.bool_),
        seed=_draw_seed(rng),
        sampled_actions=None if size is None else np.zeros((batch, unroll + 1, num_actions, size), np.float32),
    )
    columns = [
        (ACTIONS, windows.actions),
        (REWARDS, windows.rewards),
        (VISIT_POLICY, windows.visit_policy),
        (ROOT_VALUE, windows.root_value),
    ]
    if windows.sampled_actions is not None:
        columns.append((SAMPLED_ACTIONS, windows.sampled_actions))
    for name, column in columns:
        steps = column.shape[1]
        known = np.arange(steps) < windows.steps_left[:, None]
        column[known] = np.concatenate([episode.column(name)[t : t + steps] for episode, t in samples])
    if windows.action_mask is not None:
        times = np.arange(reach + 1)
        for row, (episode, t) in enumerate(samples):
            windows.action_mask[row] = episode.column(ACTION_MASK)[np.minimum(t + times, len(episode))]
        windows.action_mask[~windows.action_mask.any(axis=-1)] = 1
    return windows


def _random_actions(
    samples: Sequence[tuple[StoredEpisode, int]], shape: tuple[int, int], rng: np.random.Generator
) -> npt.NDArray[Any]:
    """For the times beyond the ends: `shape` enumerated actions, or as many of the vectors at the sampled times. What
    follows from them is masked in every loss, but it takes part in normalisation."""
    actions = samples[0][0].actions
    if actions.size is None:
        return rng.integers(actions.num_actions, size=shape)
    known = np.stack([episode.column(ACTIONS)[t] for episode, t in samples])
    return known[rng.integers(len(known), size=shape)]


def _draw_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**63))
