"""The prioritized replay of whole episodes."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rllib_efficientzero import metrics
from rllib_efficientzero.replay import segments, storage
from rllib_efficientzero.replay.episode import POSITIONS, ActionFormat, Chunk, StoredEpisode, read_chunk
from rllib_efficientzero.replay.frame_codec import FrameCodec
from rllib_efficientzero.replay.frame_sources import FrameSource, decode_on_host
from rllib_efficientzero.replay.priorities import Priorities
from rllib_efficientzero.replay.storage import ReplayLoadError
from rllib_efficientzero.replay.windows import Windows, WindowShape, gather_windows

logger = logging.getLogger(__name__)


class PrioritizedReplay:
    """Stores whole episodes and draws single positions by priority (EfficientZero, appendix A.1).

    Every stored step is a position. Its id is global: ids count all steps ever added, whatever their episode, and are
    never reused. When there are more than `capacity` positions, the oldest are evicted. An episode stays in memory
    until its last position is evicted.

    New positions get the largest priority among the live positions (1 in an empty buffer), so that they are seen soon.
    An outlier no longer counts once it is evicted or updated. The authors' code does the same, but never evicts.

    Example:
        >>> replay = PrioritizedReplay(10_000, frame_stack=4, unroll_steps=5, td_steps=5, seed=0)
        >>> len(replay), replay.num_added
        (0, 0)
    """

    def __init__(
        self,
        capacity: int = 1_000_000,
        *,
        frame_stack: int,
        unroll_steps: int,
        td_steps: int,
        priority_exponent: float = 0.6,
        seed: int | None = None,
        frame_source: FrameSource = decode_on_host,
    ) -> None:
        """Args:
        capacity: positions kept.
        frame_stack: S, single frames per stacked observation.
        unroll_steps: K, steps the model is unrolled in training.
        td_steps: n, the largest bootstrap distance of the value targets.
        priority_exponent: alpha; positions are drawn with probability ~ priority^alpha.
        seed: of the generator that draws the samples.
        frame_source: makes the frames of samples.
        """
        if capacity < 1:
            raise ValueError(f"The replay needs a capacity of at least 1 position, got {capacity}.")
        if not priority_exponent >= 0:
            raise ValueError(f"priority_exponent must not be negative, got {priority_exponent}.")
        self.capacity = capacity
        self.priority_exponent = priority_exponent
        self._frame_source = frame_source
        self._window_shape = WindowShape(frame_stack, unroll_steps, td_steps)
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._clear()

    def _clear(self) -> None:
        self._codec: FrameCodec | None = None
        self._actions = ActionFormat(0)
        self._has_action_mask = False
        self._episodes: dict[int, StoredEpisode] = {}
        self._ongoing: dict[str, int] = {}  # RLlib's id of each unfinished episode -> its number
        self._num_episodes_added = 0
        self._num_bytes = 0
        self._beta: float | None = None
        self._first_position = 0  # the oldest live one
        self._num_added = 0
        # Position p lives in slot p % capacity. Zeros cost no memory until they are written.
        self._episode_of_slot = np.zeros(self.capacity, np.int64)
        self._time_of_slot = np.zeros(self.capacity, np.int64)
        self._priorities = Priorities(self.capacity, exponent=self.priority_exponent)
        self._segment_files = segments.SegmentFiles()

    def __len__(self) -> int:
        """Positions that can be sampled."""
        return self._num_added - self._first_position

    @property
    def num_added(self) -> int:
        """Steps ever added; the next position's id."""
        return self._num_added

    # --- adding ------------------------------------------------------------------------------------------------------

    def add(self, episodes: Iterable[Any]) -> None:
        """Stores RLlib episodes or chunks of them; chunks with the same `id_` become one episode.

        Chunks without steps are skipped: their one observation is the first of the next chunk.

        Args:
            episodes: `SingleAgentEpisode`s; see `read_chunk` for what is read from them.

        Raises:
            ValueError: a chunk is malformed or does not fit those before it.
        """
        for chunk in [read_chunk(episode) for episode in episodes if len(episode) > 0]:
            self._check_format(chunk)
            self._add_chunk(chunk)

    def _check_format(self, chunk: Chunk) -> None:
        """All episodes must have the observation shape, dtype and actions of the first."""
        codec = FrameCodec(chunk.observations.shape[1:], chunk.observations.dtype)
        found = (codec, chunk.action_format, chunk.action_mask is not None)
        if self._codec is None:
            self._codec, self._actions, self._has_action_mask = found
        expected = (self._codec, self._actions, self._has_action_mask)
        if found != expected:
            raise ValueError(
                f"Episode {chunk.id} does not fit those stored before (observations, actions, action mask): "
                f"it has {found}, they have {expected}."
            )
        num_actions = self._actions.num_actions
        if chunk.action_mask is not None and chunk.action_mask.shape[1] != num_actions:
            raise ValueError(
                f"Episode {chunk.id}: action masks have {chunk.action_mask.shape[1]} entries for {num_actions} actions."
            )

    def _add_chunk(self, chunk: Chunk) -> None:
        number, episode = self._episode_for(chunk)
        time = len(episode)
        bytes_before = episode.nbytes if time else 0
        frames = [episode.codec.encode(frame) for frame in chunk.observations[1:]]
        priority = self._max_priority()
        episode.append(frames, chunk.columns(self._num_added))
        episode.end(terminated=chunk.terminated, truncated=chunk.truncated)
        if episode.is_done:
            del self._ongoing[chunk.id]
        self._num_bytes += episode.nbytes - bytes_before
        # A chunk longer than the buffer passes through in pieces, as its steps would have.
        for start in range(0, len(chunk), self.capacity):
            count = min(self.capacity, len(chunk) - start)
            episode.num_live += count
            slots = self._append_positions(count)
            self._episode_of_slot[slots] = number
            self._time_of_slot[slots] = np.arange(time + start, time + start + count)
            self._priorities.set(slots, np.full(count, priority))

    def _episode_for(self, chunk: Chunk) -> tuple[int, StoredEpisode]:
        """The stored episode that `chunk` continues, or a new one."""
        if chunk.id in self._ongoing:
            number = self._ongoing[chunk.id]
            episode = self._episodes[number]
            if not episode.follows(chunk):
                logger.warning("Steps of episode %s before step %d were lost on the way.", chunk.id, chunk.t_started)
            elif len(episode) < self.capacity:
                return number, episode
            # Episodes are evicted as a whole, so one that never ends is stored in parts, or it would be kept for ever.
        assert self._codec is not None  # set by _check_format
        episode = StoredEpisode(
            self._codec.encode(chunk.observations[0]),
            None if chunk.action_mask is None else chunk.action_mask[0],
            codec=self._codec,
            actions=chunk.action_format,
            t_started=chunk.t_started,
        )
        number = self._num_episodes_added
        self._num_episodes_added += 1
        self._episodes[number] = episode
        self._ongoing[chunk.id] = number
        return number, episode

    def _append_positions(self, count: int) -> npt.NDArray[np.int64]:
        """Reserves the slots `[count]` of the next `count` <= capacity positions, and evicts the positions in them."""
        positions = np.arange(self._num_added, self._num_added + count)
        self._num_added += count
        first = max(self._first_position, self._num_added - self.capacity)
        evicted = np.arange(self._first_position, first) % self.capacity
        self._first_position = first
        for number, num_evicted in zip(*np.unique(self._episode_of_slot[evicted], return_counts=True), strict=True):
            self._evict(int(number), int(num_evicted))
        return positions % self.capacity

    def _evict(self, number: int, num_positions: int) -> None:
        episode = self._episodes[number]
        episode.num_live -= num_positions
        if episode.num_live == 0:
            self._num_bytes -= episode.nbytes
            del self._episodes[number]
            # If its EnvRunner still plays it, the next chunk will begin a new stored episode.
            self._ongoing = {id_: other for id_, other in self._ongoing.items() if other != number}

    # --- sampling ----------------------------------------------------------------------------------------------------

    def sample(self, batch_size: int, *, beta: float) -> Windows:
        """Draws `batch_size` different positions, one after the other with probability ~ priority^alpha of the rest.

        Args:
            batch_size: B.
            beta: exponent of the importance weights (N * P)^-beta; 0 switches them off, 1 corrects fully. P is the
                probability of being drawn first.

        Raises:
            ValueError: the buffer has fewer than `batch_size` positions.
        """
        if not 1 <= batch_size <= len(self):
            raise ValueError(
                f"Cannot sample a batch of {batch_size} different positions from a replay that holds {len(self)}."
            )
        self._beta = beta
        slots = self._priorities.draw(batch_size, self._rng)
        weights = (len(self) * self._priorities.probabilities(slots)) ** -beta
        numbers, times = self._episode_of_slot[slots].tolist(), self._time_of_slot[slots].tolist()
        return gather_windows(
            [(self._episodes[number], time) for number, time in zip(numbers, times, strict=True)],
            self._window_shape,
            self._rng,
            position_ids=self._first_position + (slots - self._first_position) % self.capacity,
            weights=(weights / weights.max()).astype(np.float32),
            num_added=self._num_added,
            frame_source=self._frame_source,
        )

    # --- priorities --------------------------------------------------------------------------------------------------

    def update_priorities(self, position_ids: npt.NDArray[np.int64], priorities: npt.NDArray[np.floating[Any]]) -> None:
        """Sets the priorities of positions; those evicted since they were sampled are ignored.

        Args:
            position_ids: `[B]`, as in `Windows.position_ids`. Of duplicates the last one wins.
            priorities: `[B]`, finite and >= 0, before the exponent.

        Raises:
            ValueError: a priority is negative or not finite, or an id was never given.
        """
        position_ids = np.asarray(position_ids, np.int64)
        values: npt.NDArray[np.float64] = np.asarray(priorities, np.float64)
        if position_ids.shape != values.shape or position_ids.ndim != 1:
            raise ValueError(f"Need as many ids as priorities, got {position_ids.shape} and {values.shape}.")
        bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if len(bad) > 0:
            raise ValueError(
                f"Priorities must be finite and not negative; position {position_ids[bad[0]]} got {values[bad[0]]} "
                f"({len(bad)} of {len(values)} are bad)."
            )
        if len(position_ids) > 0 and (position_ids.min() < 0 or position_ids.max() >= self._num_added):
            raise ValueError(f"Position ids must lie in [0, {self._num_added}), got {position_ids}.")
        live = position_ids >= self._first_position
        self._priorities.set(position_ids[live] % self.capacity, values[live])

    def _used_priorities(self) -> npt.NDArray[np.float64]:
        """Priorities of all slots used so far; 0 where none is live."""
        return self._priorities.first(min(self._num_added, self.capacity))

    def _max_priority(self) -> float:
        # A pass over the buffer (0.5 ms at a million) per chunk is cheaper than a max tree kept at every update.
        return float(self._used_priorities().max()) if len(self) > 0 else 1.0

    def get_metrics(self) -> dict[str, float]:
        """Size and priorities, under the names of `rllib_efficientzero.metrics`."""
        size = max(1, len(self))
        values: dict[str, float] = {
            metrics.NUM_POSITIONS: len(self),
            metrics.NUM_EPISODES: len(self._episodes),
            metrics.NUM_BYTES: self._num_bytes,
            metrics.BYTES_PER_STEP: self._num_bytes / size,
            metrics.MEAN_PRIORITY: float(self._used_priorities().sum()) / size,
            metrics.MAX_PRIORITY: self._max_priority(),
        }
        if self._beta is not None:
            values[metrics.BETA] = self._beta
        return values

    # --- saving ------------------------------------------------------------------------------------------------------

    def save(self, directory: str | Path, previous: str | Path | None = None) -> None:
        """Writes everything, the generator included, into `directory`; see `storage` for the files.

        A crash on the way leaves an earlier save in the same directory valid.

        Args:
            directory: where to; made if needed.
            previous: directory of an earlier save of this buffer; what has not changed since is hard-linked from there.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        codec = self._codec or FrameCodec((), np.dtype(np.uint8))
        manifest = {
            "num_added": self._num_added,
            "first_position": self._first_position,
            "num_episodes_added": self._num_episodes_added,
            "observation_shape": list(codec.shape),
            "observation_dtype": codec.dtype.str,
            "num_actions": self._actions.num_actions,
            "action_size": self._actions.size,
            "action_dtype": self._actions.dtype,
            "has_action_mask": self._has_action_mask,
            "beta": self._beta,
            "ongoing": self._ongoing,
            "rng": self._rng.bit_generator.state,
            "segment_positions": segments.SEGMENT_POSITIONS,
        }
        episodes = self._episodes.values()
        state = {
            "episodes": np.fromiter(self._episodes, np.int64),
            "lengths": np.array([len(episode) for episode in episodes], np.int64),
            "t_started": np.array([episode.t_started for episode in episodes], np.int64),
            "terminated": np.array([episode.terminated for episode in episodes], np.bool_),
            "truncated": np.array([episode.truncated for episode in episodes], np.bool_),
            "priorities": self._priorities.get(np.arange(self._first_position, self._num_added) % self.capacity),
        }
        files = dict([storage.write_arrays(directory, "state", state)])
        previous = None if previous is None else Path(previous)
        files |= self._segment_files.save(directory, self._episodes, self._num_added, previous)
        storage.finish_save(directory, manifest, files)

    def load(self, directory: str | Path) -> None:
        """Replaces the content by that of a save. Ongoing episodes stay unfinished unless their EnvRunner goes on.

        With a smaller capacity than the saved one, the newest positions are kept. With the same capacity, the buffer
        draws exactly the samples that the saved one would have drawn.

        Raises:
            ReplayLoadError: a file is missing or damaged; the buffer is then as it was.
        """
        directory = Path(directory)
        manifest = storage.read_manifest(directory)
        state = storage.read_state(directory, manifest)
        try:
            loaded = self._loaded(directory, manifest, state)
        except (KeyError, IndexError, TypeError) as error:
            raise ReplayLoadError(f"The replay in {directory} is not consistent: {error!r}.") from error
        self.__dict__.update(loaded.__dict__)

    def _loaded(self, directory: Path, manifest: dict[str, Any], state: storage.Arrays) -> PrioritizedReplay:
        """A buffer with this one's settings and the content of a save."""
        shape = self._window_shape
        new = PrioritizedReplay(
            self.capacity,
            frame_stack=shape.frame_stack,
            unroll_steps=shape.unroll_steps,
            td_steps=shape.td_steps,
            priority_exponent=self.priority_exponent,
            frame_source=self._frame_source,
        )
        new._rng.bit_generator.state = manifest["rng"]
        new._num_added = manifest["num_added"]
        new._num_episodes_added = manifest["num_episodes_added"]
        new._first_position = max(manifest["first_position"], new._num_added - self.capacity)
        new._beta = manifest["beta"]
        new._actions, new._has_action_mask = segments.action_format(manifest), manifest["has_action_mask"]
        if new._num_added > 0:
            new._codec = FrameCodec(tuple(manifest["observation_shape"]), np.dtype(manifest["observation_dtype"]))
            new._episodes = segments.read_episodes(directory, manifest, state, new._codec)
        new._index_episodes()
        new._segment_files.adopt(manifest)
        new._ongoing = {id_: number for id_, number in manifest["ongoing"].items() if number in new._episodes}
        live = np.arange(new._first_position, new._num_added)
        new._priorities.set(live % self.capacity, state["priorities"][len(state["priorities"]) - len(live) :])
        return new

    def _index_episodes(self) -> None:
        """Fills the slots from the episodes' positions and drops episodes without live ones."""
        for number, episode in list(self._episodes.items()):
            positions = episode.column(POSITIONS)
            times = np.flatnonzero(positions >= self._first_position)
            episode.num_live = len(times)
            if episode.num_live == 0:
                del self._episodes[number]
                continue
            slots = positions[times] % self.capacity
            self._episode_of_slot[slots] = number
            self._time_of_slot[slots] = times
            self._num_bytes += episode.nbytes
