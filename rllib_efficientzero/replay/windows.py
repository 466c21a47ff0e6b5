"""Windows: all the data from which the targets and losses of a batch of sampled positions are made."""

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
    MARK,
    REWARDS,
    ROOT_VALUE,
    SAMPLED_ACTIONS,
    VISIT_POLICY,
    ActionFormat,
    StoredEpisode,
)
from rllib_efficientzero.replay.frame_sources import FrameSource, SampledFrames, decode_on_host


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
        """S-1 + K+1 + n: the frames of the stacks of the times t .. t+K+n."""
        return self.frame_stack + self.unroll_steps + self.td_steps


@dataclass(frozen=True)
class Windows:
    """A batch of B sampled positions with the steps around them.

    t is the sampled time within its episode, T the episode's length so far; S = frame_stack, K = unroll_steps,
    n = td_steps, A = number of actions. Sampled actions are vectors of size D, and A is then the number of actions that
    the search sampled.

    Example:
        >>> def stack(windows: Windows, k: int, frame_stack: int) -> np.ndarray:
        ...     "Stacked observations [B, S, *obs_shape] of time t + k."
        ...     return windows.frames[:, k : k + frame_stack]
    """

    position_ids: npt.NDArray[np.int64]
    """`[B]` global ids of the sampled positions, for `update_priorities` and the age of samples (see `num_added`)"""
    weights: npt.NDArray[np.float32]
    """`[B]` importance weights (N * P)^-beta, divided by the batch's largest"""
    num_added: int
    """steps ever added to the replay when the batch was drawn; `num_added - position_id` is a sample's age"""
    frames: npt.NDArray[Any] | Tensor
    """`[B, S-1 + K+1 + n, *obs_shape]` in the observations' dtype, on the host or a device, as the replay's frame
    source makes them. Frame j belongs to time t - (S-1) + j. The episode's first frame is repeated before its start,
    its last one (so far) after its end."""
    actions: npt.NDArray[Any]
    """i64`[B, K]` or `[B, K, D]` actions of the times t .. t+K-1; from T on they are random: uniform if actions are
    enumerated, else drawn from the batch's actions"""
    rewards: npt.NDArray[np.float32]
    """`[B, K+n]` rewards of the times t .. t+K+n-1; from T on 0"""
    visit_policy: npt.NDArray[np.float32]
    """`[B, K+1, A]` stored search policies of the times t .. t+K; from T on 0"""
    root_value: npt.NDArray[np.float32]
    """`[B, K+1]` stored root values of the times t .. t+K; from T on 0"""
    action_mask: npt.NDArray[np.uint8] | None
    """`[B, K+1+n, A]` legal actions (1) of the times t .. t+K+n, from all of which a target may search; after T the
    mask of T is repeated. A row without any legal action (a terminal observation) becomes all 1, since a search needs
    one. None: all actions are always legal."""
    steps_left: npt.NDArray[np.int64]
    """`[B]` T - t, at least 1: number of actions known from t on"""
    terminated: npt.NDArray[np.bool_]
    """`[B]` whether the episode terminated at T. If not (truncated, ongoing or cut off), values must be bootstrapped
    from the observation at T."""
    seed: int
    """seed of all random numbers for this batch's targets, so that the same windows give the same targets"""
    sampled_actions: npt.NDArray[np.float32] | None = None
    """`[B, K+1, A, D]` the actions to which `visit_policy` refers; from T on 0. None: actions are enumerated"""

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
    """Gathers the windows around B sampled times. All episodes share one codec.

    Args:
        samples: B pairs of an episode and a time t < T in it.
        shape: how far windows reach.
        rng: source of the actions past the episodes' ends, and of the batch's seed.
        position_ids: `[B]`, passed on to the result like the next two.
        weights: `[B]`
        num_added: steps ever added.
        frame_source: makes the frames.
    """
    first, before, reach = samples[0][0], shape.frame_stack - 1, shape.unroll_steps + shape.td_steps
    times = np.array([t for _, t in samples], np.int64)
    lengths = np.array([len(episode) for episode, _ in samples], np.int64)
    # Per window, Python only takes a slice of rows; everything below works on the rows of all windows at once.
    begins, ends = np.maximum(times - before, 0), np.minimum(times + reach, lengths) + 1
    slices = zip(samples, begins.tolist(), ends.tolist(), strict=True)
    rows = np.concatenate([episode.rows(begin, end) for (episode, _), begin, end in slices]).view(first.row_dtype)[:, 0]
    beginnings = np.cumsum(ends - begins) - ends  # added to a time, gives its index in `rows`
    inside = np.clip(times[:, None] + np.arange(-before, reach + 1), 0, lengths[:, None])  # [B, num_frames] times
    at = inside + beginnings[:, None]
    steps = at[:, before:]  # The row of T holds zeros where a step would be.
    unrolled, states = steps[:, : shape.unroll_steps], steps[:, : shape.unroll_steps + 1]
    # One call for the whole batch, so that no frame is decoded twice, not even those repeated past an episode's ends.
    frames = frame_source(first.codec, _FramesOfWindows(samples, inside, rows[MARK][at]))
    windows = Windows(
        position_ids=position_ids,
        weights=weights,
        num_added=num_added,
        frames=frames.reshape(len(samples), shape.num_frames, *first.codec.shape),
        actions=_random_actions(rows[ACTIONS][at[:, before]], unrolled.shape, first.actions, rng),
        rewards=rows[REWARDS][steps[:, :reach]],
        visit_policy=rows[VISIT_POLICY][states],
        root_value=rows[ROOT_VALUE][states],
        action_mask=rows[ACTION_MASK][steps] if first.has_action_mask else None,
        steps_left=lengths - times,
        terminated=np.array([episode.terminated for episode, _ in samples], np.bool_),
        seed=_draw_seed(rng),
        sampled_actions=None if first.actions.size is None else rows[SAMPLED_ACTIONS][states],
    )
    known = np.arange(shape.unroll_steps) < windows.steps_left[:, None]
    windows.actions[known] = rows[ACTIONS][unrolled[known]]
    if windows.action_mask is not None:
        windows.action_mask[~windows.action_mask.any(axis=-1)] = 1
    return windows


class _FramesOfWindows(SampledFrames):
    """The F frames of each of B windows, one window after the other; see `SampledFrames`."""

    def __init__(
        self,
        samples: Sequence[tuple[StoredEpisode, int]],
        times: npt.NDArray[np.int64],
        marks: npt.NDArray[np.int64],
    ) -> None:
        """Args:
        samples: the B episodes; the times in it are not used.
        times: `[B, F]` times of the frames in their episodes.
        marks: `[B, F]`
        """
        self._samples, self._times = samples, times
        self.marks = marks.reshape(-1)

    def codes(self, rows: npt.NDArray[np.int64] | None = None) -> list[bytes]:
        if rows is None:
            windows = zip([episode.frames for episode, _ in self._samples], self._times.tolist(), strict=True)
            return [frames[t] for frames, times in windows for t in times]
        return [episode.frames[t] for episode, t in self._at(rows)]

    def note(self, rows: npt.NDArray[np.int64], marks: npt.NDArray[np.int64]) -> None:
        for (episode, t), mark in zip(self._at(rows), marks.tolist(), strict=True):
            episode.mark(t, mark)

    def _at(self, rows: npt.NDArray[np.int64]) -> list[tuple[StoredEpisode, int]]:
        windows, times = rows // self._times.shape[1], self._times.reshape(-1)[rows]
        return [(self._samples[window][0], t) for window, t in zip(windows.tolist(), times.tolist(), strict=True)]


def _random_actions(
    known: npt.NDArray[Any], shape: tuple[int, ...], actions: ActionFormat, rng: np.random.Generator
) -> npt.NDArray[Any]:
    """Random actions for the times past the episodes' ends: uniform enumerated actions, or vectors drawn from `known`
    `[B, D]`. Their predictions are masked in every loss, but they do take part in batch normalisation."""
    if actions.size is None:
        return rng.integers(actions.num_actions, size=shape)
    return known[rng.integers(len(known), size=shape)]


def _draw_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**63))
