"""The last S observations of one episode, stacked as the EnvRunners stack them."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np

from rllib_efficientzero.env.checks import ACTION_MASK, OBSERVATIONS


class FrameStack:
    """Single observations `[...]` -> `[S, ...]`, oldest first; at an episode's start its first frame is repeated."""

    def __init__(self, frame_stack: int) -> None:
        self._frames: collections.deque[np.ndarray] = collections.deque(maxlen=frame_stack)

    def copy(self) -> FrameStack:
        """Returns a copy with the same frames; frames pushed to one do not appear in the other."""
        twin = FrameStack(self._frames.maxlen or 1)
        twin._frames.extend(self._frames)
        return twin

    def reset(self) -> None:
        """Empties the stack, as the next frame is an episode's first."""
        self._frames.clear()

    def push(self, frame: np.ndarray) -> np.ndarray:
        """Adds the newest frame and returns the stack."""
        self._frames.append(frame)
        missing = (self._frames.maxlen or 1) - len(self._frames)
        return np.stack([self._frames[0]] * missing + list(self._frames))


def split_mask(observation: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Splits an observation into its frame and, if it has a mask, the legal actions `[A]` bool (else None)."""
    if isinstance(observation, dict):
        return np.asarray(observation[OBSERVATIONS]), np.asarray(observation[ACTION_MASK]).astype(bool)
    return np.asarray(observation), None
