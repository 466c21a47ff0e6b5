"""Episodes as the replay stores them, and their conversion from RLlib's episode chunks."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rllib_efficientzero.replay.frame_codec import FrameCodec

OBSERVATIONS = "observations"
POSITIONS = "positions"
ACTIONS = "actions"
REWARDS = "rewards"
ACTION_MASK = "action_mask"
ROOT_VALUE = "root_value"
VISIT_POLICY = "visit_policy"
SAMPLED_ACTIONS = "sampled_actions"
MARK = "mark"
"""A field beside the columns: a frame source's note about the frame of a time, initially 0; see
`frame_sources.SampledFrames`."""


@dataclass(frozen=True)
class ActionFormat:
    """The format of a replay's actions."""

    num_actions: int
    """A: number of enumerated actions, or of actions sampled at each step"""
    size: int | None = None
    """D, the size of sampled actions, which are vectors; None: actions are enumerated"""
    dtype: str = "int64"

    @property
    def shape(self) -> tuple[int, ...]:
        """`()` or `(D,)`"""
        return () if self.size is None else (self.size,)


@dataclass(frozen=True)
class Chunk:
    """T consecutive steps of one episode: what an `EnvRunner` delivers at once.

    `observations[i]` is seen before action i, `observations[T]` after the last one.
    """

    id: str
    t_started: int
    """Time of the first step within the episode."""
    observations: npt.NDArray[Any]
    """`[T+1, *obs_shape]`"""
    actions: npt.NDArray[Any]
    """i64`[T]`, or `[T, D]` where actions are sampled"""
    rewards: npt.NDArray[np.float32]
    """`[T]`"""
    root_value: npt.NDArray[np.float32]
    """`[T]`, by the search that chose the action"""
    visit_policy: npt.NDArray[np.float32]
    """`[T, A]`, by the same search"""
    action_mask: npt.NDArray[np.uint8] | None
    """`[T+1, A]`, 1 = legal"""
    terminated: bool
    truncated: bool
    sampled_actions: npt.NDArray[np.float32] | None = None
    """`[T, A, D]`, the actions to which `visit_policy` refers; None if actions are enumerated"""

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def action_format(self) -> ActionFormat:
        """The format of its actions."""
        num_actions = self.visit_policy.shape[1]
        if self.sampled_actions is None:
            return ActionFormat(num_actions)
        return ActionFormat(num_actions, self.actions.shape[1], self.actions.dtype.name)

    def columns(self, first_position: int) -> dict[str, npt.NDArray[Any]]:
        """Rows for `StoredEpisode.append`, the first step having the global id `first_position`."""
        columns: dict[str, npt.NDArray[Any]] = {
            POSITIONS: np.arange(first_position, first_position + len(self)),
            ACTIONS: self.actions,
            REWARDS: self.rewards,
            ROOT_VALUE: self.root_value,
            VISIT_POLICY: self.visit_policy,
        }
        if self.action_mask is not None:
            columns[ACTION_MASK] = self.action_mask[1:]
        if self.sampled_actions is not None:
            columns[SAMPLED_ACTIONS] = self.sampled_actions
        return columns


def read_chunk(episode: Any) -> Chunk:
    """Arrays of an RLlib `SingleAgentEpisode` (finalized or not), without its lookback buffer.

    Args:
        episode: has `id_`, `t_started`, `is_terminated`, `is_truncated`, `get_observations()`, `get_actions()`,
            `get_rewards()` and `get_extra_model_outputs(key)` for "root_value", "visit_policy" and, where actions are
            vectors, "sampled_actions". Observations are arrays or dicts {"observations", "action_mask"}.

    Raises:
        ValueError: something is missing or has the wrong length.
    """
    num_steps = len(episode)
    observations, action_mask = _split_observations(episode.get_observations())
    actions = np.asarray(episode.get_actions())
    chunk = Chunk(
        id=str(episode.id_),
        t_started=int(episode.t_started),
        observations=observations,
        actions=actions,
        rewards=np.asarray(episode.get_rewards(), dtype=np.float32),
        root_value=_extra_output(episode, ROOT_VALUE),
        visit_policy=_extra_output(episode, VISIT_POLICY),
        action_mask=action_mask,
        terminated=bool(episode.is_terminated),
        truncated=bool(episode.is_truncated),
        sampled_actions=_extra_output(episode, SAMPLED_ACTIONS) if actions.ndim == 2 else None,
    )
    _check_lengths(chunk, num_steps)
    return chunk


def _split_observations(observations: Any) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8] | None]:
    """Observations `[T+1, ...]` and action masks `[T+1, A]` or None, from any of the forms RLlib returns."""
    if isinstance(observations, dict):
        return np.asarray(observations[OBSERVATIONS]), np.asarray(observations[ACTION_MASK], dtype=np.uint8)
    if len(observations) > 0 and isinstance(observations[0], dict):
        frames = np.stack([np.asarray(observation[OBSERVATIONS]) for observation in observations])
        masks = np.stack([np.asarray(observation[ACTION_MASK], dtype=np.uint8) for observation in observations])
        return frames, masks
    return np.asarray(observations), None


def _extra_output(episode: Any, key: str) -> npt.NDArray[np.float32]:
    try:
        return np.asarray(episode.get_extra_model_outputs(key), dtype=np.float32)
    except KeyError as error:
        raise ValueError(
            f'Episode {episode.id_} has no extra model output "{key}"; the RLModule must return it with every action.'
        ) from error


def _check_lengths(chunk: Chunk, num_steps: int) -> None:
    kinds = "iu" if chunk.sampled_actions is None else "iuf"
    if chunk.actions.ndim not in (1, 2) or chunk.actions.dtype.kind not in kinds:
        raise ValueError(
            f"Episode {chunk.id}: the replay stores one integer action per step, or one vector of numbers, got an "
            f"array of shape {chunk.actions.shape} and dtype {chunk.actions.dtype}."
        )
    if chunk.visit_policy.ndim != 2 or chunk.rewards.ndim != 1 or chunk.root_value.ndim != 1:
        raise ValueError(
            f"Episode {chunk.id}: expected rewards [T], root_value [T] and visit_policy [T, A], got "
            f"{chunk.rewards.shape}, {chunk.root_value.shape} and {chunk.visit_policy.shape}."
        )
    sampled, policy = chunk.sampled_actions, chunk.visit_policy
    if sampled is not None and sampled.shape[1:] != (policy.shape[1], chunk.actions.shape[1]):
        raise ValueError(
            f"Episode {chunk.id}: expected actions [T, D], visit_policy [T, A] and sampled_actions [T, A, D], got "
            f"{chunk.actions.shape}, {policy.shape} and {sampled.shape}."
        )
    expected = {"actions": num_steps, "rewards": num_steps, "root_value": num_steps, "visit_policy": num_steps}
    expected |= {"observations": num_steps + 1, "action_mask": num_steps + 1, "sampled_actions": num_steps}
    for name, length in expected.items():
        array = getattr(chunk, name)
        if array is not None and len(array) != length:
            raise ValueError(
                f"Episode {chunk.id}: {name} has length {len(array)}, but {num_steps} steps need {length}."
            )


class GrowingArray:
    """An array that grows along its first axis at amortised constant cost per row."""

    def __init__(self, row_shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        self._data = np.empty((0, *row_shape), dtype)
        self._length = 0

    def part(self, begin: int, end: int) -> npt.NDArray[Any]:
        """View of the rows [begin, end), which must exist; valid until the next `extend`."""
        return self._data[begin:end]

    @property
    def array(self) -> npt.NDArray[Any]:
        """View of all rows so far, like `part`."""
        return self._data[: self._length]

    def extend(self, count: int) -> None:
        """Adds `count` rows of zeros at the end."""
        end = self._length + count
        if end > len(self._data):
            grown = np.empty((max(end, 2 * len(self._data)), *self._data.shape[1:]), self._data.dtype)
            grown[: self._length] = self.array
            self._data = grown
        self._data[self._length : end] = 0
        self._length = end

    def trim(self) -> None:
        """Frees the memory reserved for growth."""
        self._data = self.array.copy()

    @property
    def nbytes(self) -> int:
        """Bytes held, reserve included."""
        return self._data.nbytes


class StoredEpisode:
    """One episode: T+1 encoded single frames and the columns of its T steps.

    All values of one time are stored side by side in a row, so that a window is one slice of rows, not a slice of every
    column. The row of the last observation is zero except for its action mask.

    Both `terminated` and `truncated` False means that the episode goes on, or that its runner died before its end: the
    last stored observation is then neither terminal nor a time limit, merely the last one known.
    """

    def __init__(
        self,
        first_frame: bytes,
        first_action_mask: npt.NDArray[np.uint8] | None,
        *,
        codec: FrameCodec,
        actions: ActionFormat,
        t_started: int = 0,
    ) -> None:
        """Makes an episode without steps.

        Args:
            first_frame: its first observation, encoded.
            first_action_mask: `[A]`, or None if every action is always legal.
            codec: decodes the frames.
            actions: the format of its actions.
            t_started: time of the first step; not 0 if the episode's beginning is not stored.
        """
        self.codec = codec
        self.actions = actions
        self.t_started = t_started
        self.terminated = False
        self.truncated = False
        self.num_live = 0
        """Positions of this episode that the buffer has not evicted yet; kept by the buffer."""
        self.frames: list[bytes] = [first_frame]
        self._frame_bytes = sys.getsizeof(first_frame)
        columns: list[tuple[str, Any, tuple[int, ...]]] = [
            (POSITIONS, np.int64, ()),
            (ACTIONS, actions.dtype, actions.shape),
            (REWARDS, np.float32, ()),
            (ROOT_VALUE, np.float32, ()),
            (VISIT_POLICY, np.float32, (actions.num_actions,)),
        ]
        if actions.size is not None:
            columns.append((SAMPLED_ACTIONS, np.float32, (actions.num_actions, actions.size)))
        if first_action_mask is not None:
            columns.append((ACTION_MASK, np.uint8, (actions.num_actions,)))
        self.column_names = [name for name, _, _ in columns]
        self.row_dtype = np.dtype([(MARK, np.int64), *columns], align=True)
        """A structured dtype of MARK and the columns."""
        # Stored as bytes: NumPy concatenates structured arrays field by field, but bytes at once.
        self._rows = GrowingArray((self.row_dtype.itemsize,), np.uint8)
        self._rows.extend(1)
        if first_action_mask is not None:
            self._table[ACTION_MASK] = first_action_mask

    def __len__(self) -> int:
        """Steps stored so far, T."""
        return len(self.frames) - 1

    @property
    def is_done(self) -> bool:
        """Whether no further chunk can follow."""
        return self.terminated or self.truncated

    @property
    def has_action_mask(self) -> bool:
        """Whether observations came with action masks."""
        return ACTION_MASK in self.column_names

    @property
    def nbytes(self) -> int:
        """Bytes held: frames with their Python objects and the list's references, and rows with their reserve."""
        return self._frame_bytes + 8 * len(self.frames) + self._rows.nbytes

    def rows(self, begin: int, end: int) -> npt.NDArray[np.uint8]:
        """View of the rows of the times begin .. end-1 <= T as bytes, `[end - begin, row_dtype.itemsize]`."""
        return self._rows.part(begin, end)

    @property
    def _table(self) -> npt.NDArray[Any]:
        """View `[T+1]` of all rows, as structures."""
        return self._rows.array.view(self.row_dtype)[:, 0]

    def mark(self, t: int, value: int) -> None:
        """Changes MARK of the time t <= T."""
        self._table[MARK][t] = value

    def column(self, name: str) -> npt.NDArray[Any]:
        """View of a column so far.

        Args:
            name: POSITIONS i64`[T]` (global ids; they ascend, with gaps where other episodes were stored in between),
                ACTIONS i64`[T]` or `[T, D]`, REWARDS f32`[T]`, ROOT_VALUE f32`[T]`, VISIT_POLICY f32`[T, A]`,
                ACTION_MASK u8`[T+1, A]` or SAMPLED_ACTIONS f32`[T, A, D]`.
        """
        column = self._table[name]
        return column if name == ACTION_MASK else column[:-1]

    def follows(self, chunk: Chunk) -> bool:
        """Whether `chunk` begins where this episode ends. False means that chunks in between were lost.

        Raises:
            ValueError: the times agree but the observations do not.
        """
        if chunk.t_started != self.t_started + len(self):
            return False
        if self.codec.encode(chunk.observations[0]) != self.frames[-1]:
            raise ValueError(
                f"Episode {chunk.id}: the chunk from step {chunk.t_started} does not begin with the observation that "
                "the chunk before it ended with. Connectors must not change stored observations between chunks."
            )
        return True

    def append(self, frames: Sequence[bytes], columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Adds m steps: the encoded observations after each of them, and `[m, ...]` rows for every column.

        The rows of ACTION_MASK belong, like the frames, to the observations after the steps.
        """
        first = len(self)
        self.frames += frames
        self._frame_bytes += sum(map(sys.getsizeof, frames))
        self._rows.extend(len(frames))
        for name in self.column_names:
            self.column(name)[first + (name == ACTION_MASK) :] = columns[name]

    def end(self, *, terminated: bool, truncated: bool) -> None:
        """Notes how the episode ended, if it did."""
        self.terminated = terminated
        self.truncated = truncated
        if self.is_done:
            self._rows.trim()
