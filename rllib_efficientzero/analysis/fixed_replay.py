"""A saved replay as a fixed data set: parts of its episodes are split into two sets, to draw windows from either."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rllib_efficientzero.replay import storage
from rllib_efficientzero.replay.episode import REWARDS, StoredEpisode
from rllib_efficientzero.replay.frame_codec import FrameCodec
from rllib_efficientzero.replay.segments import read_episodes
from rllib_efficientzero.replay.windows import Windows, WindowShape, gather_windows

REPLAY_DIR = "replay"
POSITIONS_PER_EPISODE_PART = 500
"""Longer episodes are split into parts of this many steps, some of which are held out. Whole episodes would be too few:
100,000 steps of Pong are a few dozen, of which a tenth says nothing."""


@dataclass(frozen=True)
class FixedReplay:
    """A set of positions (episode, time) of a replay."""

    positions: Sequence[tuple[StoredEpisode, int]]
    num_parts: int
    """of parts of episodes that contain them; neighbouring positions are nearly the same"""

    def __len__(self) -> int:
        return len(self.positions)

    def sample(self, count: int, shape: WindowShape, rng: np.random.Generator) -> Windows:
        """Returns `count` windows at positions drawn uniformly, with replacement."""
        return self._windows([self.positions[index] for index in rng.integers(len(self), size=count)], shape, rng)

    def spread(self, count: int, shape: WindowShape, rng: np.random.Generator) -> Windows:
        """Returns windows at `count` positions (or all, if fewer) spaced evenly over all; always the same positions."""
        indices = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int))
        return self._windows([self.positions[index] for index in indices], shape, rng)

    def rewarded(self, unroll_steps: int) -> FixedReplay:
        """Returns the positions that are followed by a reward within `unroll_steps` steps."""
        found = [(episode, t) for episode, t in self.positions if episode.column(REWARDS)[t : t + unroll_steps].any()]
        return FixedReplay(found, self.num_parts)

    @staticmethod
    def _windows(
        positions: Sequence[tuple[StoredEpisode, int]], shape: WindowShape, rng: np.random.Generator
    ) -> Windows:
        count = len(positions)
        return gather_windows(
            positions,
            shape,
            rng,
            position_ids=np.zeros(count, np.int64),
            weights=np.ones(count, np.float32),
            num_added=0,
        )


def load(
    checkpoint: pathlib.Path, *, held_out: float, unroll_steps: int, seed: int = 0
) -> tuple[FixedReplay, FixedReplay]:
    """Loads the replay of a checkpoint, split into positions to learn from and positions held out.

    Only positions with `unroll_steps` steps after them in the same part are taken, so that no reward or action is in
    both sets. Frames stacked at the beginning of a part may be from the part before.

    Args:
        checkpoint: a checkpoint's directory.
        held_out: share of the parts that are held out, at least one.
        unroll_steps: K.
        seed: of the choice of held-out parts.

    Raises:
        ReplayLoadError: the checkpoint has no replay, or it is damaged.
        ValueError: it is too small to be split.
    """
    directory = checkpoint / REPLAY_DIR
    manifest = storage.read_manifest(directory)
    codec = FrameCodec(tuple(manifest["observation_shape"]), np.dtype(manifest["observation_dtype"]))
    episodes = read_episodes(directory, manifest, storage.read_state(directory, manifest), codec)
    parts = [part for episode in episodes.values() for part in _parts(episode, unroll_steps)]
    if len(parts) < 2:
        raise ValueError(f"the replay in {directory} has {len(parts)} parts of an episode; it cannot be split in two")
    order = np.random.default_rng(seed).permutation(len(parts))
    count = max(1, round(held_out * len(parts)))
    train, test = (
        FixedReplay([(parts[i][0], t) for i in sorted(chosen) for t in parts[i][1]], len(chosen))
        for chosen in (order[count:], order[:count])
    )
    return train, test


def count(**splits: FixedReplay) -> dict[str, dict[str, int]]:
    """Returns the sizes of splits for a measurement: `{"positions": {split: number}, "parts": {split: number}}`."""
    return {
        "positions": {name: len(split) for name, split in splits.items()},
        "parts": {name: split.num_parts for name, split in splits.items()},
    }


def described(values: Mapping[str, Any]) -> str:
    """Says in a sentence what a measurement held out, from its entries of `count`; old ones lack `parts`."""
    positions, parts = values["positions"], values.get("parts")
    if parts is None:
        return f"Held out are {positions['held_out']:,} positions, in an unknown number of parts of the same episodes."
    return (
        f"Held out are {parts['held_out']} of {sum(parts.values())} parts of up to {POSITIONS_PER_EPISODE_PART} steps, "
        f"{positions['held_out']:,} positions, of the same episodes that the other parts are of."
    )


def _parts(episode: StoredEpisode, unroll_steps: int) -> list[tuple[StoredEpisode, range]]:
    """Splits an episode into parts whose windows share no step: returns it with each part's times for positions."""
    found = []
    for start in range(0, len(episode), POSITIONS_PER_EPISODE_PART):
        end = min(start + POSITIONS_PER_EPISODE_PART, len(episode))
        if end - unroll_steps > start:
            found.append((episode, range(start, end - unroll_steps)))
    return found
