"""Conversion of stored episodes to segments of plain arrays, ordered by position, and back."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rllib_efficientzero.checkpoint.files import FileEntry, link_or_copy
from rllib_efficientzero.replay.episode import (
    ACTION_MASK,
    ACTIONS,
    POSITIONS,
    REWARDS,
    ROOT_VALUE,
    SAMPLED_ACTIONS,
    VISIT_POLICY,
    ActionFormat,
    StoredEpisode,
)
from rllib_efficientzero.replay.frame_codec import FrameCodec
from rllib_efficientzero.replay.storage import Arrays, ReplayLoadError, read_segments, write_arrays

SEGMENT_POSITIONS = 4096


class SegmentFiles:
    """Keeps track of a replay's segment files over several saves, so that a full segment is written only once."""

    def __init__(self) -> None:
        self._full: dict[int, tuple[str, FileEntry]] = {}

    def save(
        self, directory: Path, episodes: Mapping[int, StoredEpisode], num_added: int, previous: Path | None
    ) -> dict[str, FileEntry]:
        """Puts every segment of `episodes` into `directory`.

        Args:
            directory: where to.
            episodes: by number.
            num_added: steps ever added; segments that end before this position are full.
            previous: directory of an earlier save, whose files of full segments are hard-linked.

        Returns:
            name -> manifest entry.
        """
        numbers = segment_numbers(episodes)
        self._full = {number: saved for number, saved in self._full.items() if number in numbers}
        files = dict(saved for saved in self._full.values() if _is_there(saved, directory, previous))
        missing = [number for number in numbers if number not in self._full or self._full[number][0] not in files]
        for number, arrays in pack_segments(episodes, missing):
            name, entry = write_arrays(directory, f"segment-{number:08d}", arrays)
            files[name] = entry
            if (number + 1) * SEGMENT_POSITIONS <= num_added:
                self._full[number] = name, entry
        return files

    def adopt(self, manifest: Mapping[str, Any]) -> None:
        """Takes over the full segments of a loaded save, so that the next save need not write them again."""
        if manifest.get("segment_positions") != SEGMENT_POSITIONS:
            return
        for name, entry in manifest["files"].items():
            if name.startswith("segment"):
                number = int(name.split("-")[1])
                if (number + 1) * SEGMENT_POSITIONS <= manifest["num_added"]:
                    self._full[number] = name, entry


def _is_there(saved: tuple[str, FileEntry], directory: Path, previous: Path | None) -> bool:
    name, entry = saved
    if (directory / name).exists():
        return True
    return previous is not None and link_or_copy(previous / name, directory / name, entry["size"])


def segment_numbers(episodes: Mapping[int, StoredEpisode]) -> list[int]:
    """Numbers of the segments that contain steps of `episodes`, ascending."""
    numbers: set[int] = set()
    for episode in episodes.values():
        numbers.update(np.unique(episode.column(POSITIONS) // SEGMENT_POSITIONS).tolist())
    return sorted(numbers)


def pack_segments(episodes: Mapping[int, StoredEpisode], wanted: Collection[int]) -> Iterator[tuple[int, Arrays]]:
    """(number, arrays) of those segments of `episodes` (by episode number) with a `wanted` number, ascending.

    Besides the episodes' columns, row for row in the order of positions, a segment has
    "episodes" i64`[n]` (the episode number of each row), "frame_sizes" u32`[n]` and "frames" u8 (the encoded
    observations after the steps, end to end), and the same for the first observations of the episodes that begin in it:
    "first_rows" i64`[m]`, "first_frame_sizes" u32`[m]`, "first_frames" u8 and "first_action_mask" u8`[m, A]`.
    """
    episodes = {number: episode for number, episode in episodes.items() if _touches(episode, wanted)}
    if not episodes:
        return
    lengths = [len(episode) for episode in episodes.values()]
    numbers = np.repeat(np.fromiter(episodes, np.int64), lengths)
    offsets = np.concatenate([np.arange(length) for length in lengths])
    names = [POSITIONS, ACTIONS, REWARDS, ROOT_VALUE, VISIT_POLICY]
    columns = {name: np.concatenate([episode.column(name) for episode in episodes.values()]) for name in names}
    first = next(iter(episodes.values()))
    has_mask = first.has_action_mask
    if first.actions.size is not None:
        sampled = [episode.column(SAMPLED_ACTIONS) for episode in episodes.values()]
        columns[SAMPLED_ACTIONS] = np.concatenate(sampled)
    if has_mask:
        columns[ACTION_MASK] = np.concatenate([episode.column(ACTION_MASK)[1:] for episode in episodes.values()])
    order = np.argsort(columns[POSITIONS])
    segment_of = columns[POSITIONS][order] // SEGMENT_POSITIONS
    for rows in np.split(order, np.flatnonzero(np.diff(segment_of)) + 1):
        segment_number = int(columns[POSITIONS][rows[0]]) // SEGMENT_POSITIONS
        if segment_number not in wanted:
            continue
        steps = list(zip(numbers[rows].tolist(), offsets[rows].tolist(), strict=True))
        first_rows = np.flatnonzero(offsets[rows] == 0)
        beginning = [episodes[steps[row][0]] for row in first_rows]
        segment = {name: column[rows] for name, column in columns.items()}
        segment["episodes"] = numbers[rows]
        segment |= _pack_frames("", [episodes[number].frames[offset + 1] for number, offset in steps])
        segment["first_rows"] = first_rows
        segment |= _pack_frames("first_", [episode.frames[0] for episode in beginning])
        if has_mask and beginning:
            segment["first_action_mask"] = np.stack([episode.column(ACTION_MASK)[0] for episode in beginning])
        yield segment_number, segment


def _touches(episode: StoredEpisode, numbers: Collection[int]) -> bool:
    positions = episode.column(POSITIONS)
    first, last = int(positions[0]) // SEGMENT_POSITIONS, int(positions[-1]) // SEGMENT_POSITIONS
    return any(number in numbers for number in range(first, last + 1))


def read_episodes(
    directory: Path, manifest: dict[str, Any], state: Arrays, codec: FrameCodec
) -> dict[int, StoredEpisode]:
    """The episodes of a save by number, in order.

    Raises:
        ReplayLoadError: their lengths are not those that the state file gives.
    """
    unordered: dict[int, StoredEpisode] = {}
    lengths = dict(zip(state["episodes"].tolist(), state["lengths"].tolist(), strict=True))
    for path, segment in read_segments(directory, manifest):
        try:
            unpack_segment(segment, unordered, lengths, codec=codec, actions=action_format(manifest))
        except (KeyError, IndexError, ValueError) as error:
            raise ReplayLoadError(f"{path} does not fit the rest of the save: {error!r}.") from error
    if {number: len(episode) for number, episode in unordered.items()} != lengths:
        raise ReplayLoadError(f"The segments in {directory} do not hold the episodes that its state file lists.")
    episodes = {number: unordered[number] for number in lengths}
    for i, episode in enumerate(episodes.values()):
        episode.t_started = int(state["t_started"][i])
        episode.end(terminated=bool(state["terminated"][i]), truncated=bool(state["truncated"][i]))
    return episodes


def action_format(manifest: Mapping[str, Any]) -> ActionFormat:
    """The format of actions in a save; saves of versions that had enumerated actions only do not state it."""
    return ActionFormat(manifest["num_actions"], manifest.get("action_size"), manifest.get("action_dtype", "int64"))


def unpack_segment(
    segment: Mapping[str, npt.NDArray[Any]],
    episodes: dict[int, StoredEpisode],
    wanted: Collection[int],
    *,
    codec: FrameCodec,
    actions: ActionFormat,
) -> None:
    """Adds the segment's steps of episodes with a `wanted` number to `episodes`, making those that begin in it.

    Segments must come in ascending order.

    Raises:
        KeyError: an array is missing, or a step's episode has not begun.
    """
    numbers = segment["episodes"]
    masks = segment.get("first_action_mask")
    for i, (row, frame) in enumerate(zip(segment["first_rows"], _unpack_frames("first_", segment), strict=True)):
        mask = None if masks is None else masks[i]
        if int(numbers[row]) not in wanted:
            continue
        episodes[int(numbers[row])] = StoredEpisode(frame, mask, codec=codec, actions=actions)
    frames = _unpack_frames("", segment)
    for number in np.unique(numbers).tolist():
        if number not in wanted:
            continue
        rows = np.flatnonzero(numbers == number)
        columns = {name: array[rows] for name, array in segment.items() if len(array) == len(numbers)}
        episodes[number].append([frames[row] for row in rows], columns)


def _pack_frames(prefix: str, frames: list[bytes]) -> Arrays:
    return {
        f"{prefix}frame_sizes": np.array([len(frame) for frame in frames], np.uint32),
        f"{prefix}frames": np.frombuffer(b"".join(frames), np.uint8),
    }


def _unpack_frames(prefix: str, segment: Mapping[str, npt.NDArray[Any]]) -> list[bytes]:
    ends = np.cumsum(segment[f"{prefix}frame_sizes"], dtype=np.int64).tolist()
    joined = segment[f"{prefix}frames"].tobytes()
    return [joined[low:high] for low, high in zip([0, *ends[:-1]], ends, strict=True)] if ends else []
