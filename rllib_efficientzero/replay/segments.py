"""Stored episodes as segments of plain arrays, by position, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rllib_efficientzero.replay.episode import (
    ACTION_MASK,
    ACTIONS,
    POSITIONS,
    REWARDS,
    ROOT_VALUE,
    VISIT_POLICY,
    StoredEpisode,
)
from rllib_efficientzero.replay.frame_codec import FrameCodec
from rllib_efficientzero.replay.storage import Arrays, ReplayLoadError, read_segments

SEGMENT_POSITIONS = 4096


def pack_segments(episodes: Mapping[int, StoredEpisode]) -> Iterator[tuple[int, Arrays]]:
    """(number, arrays) of each segment that has steps of `episodes` (by episode number), ascending.

    Besides the episodes' columns, row for row in the order of positions, a segment has
    "episodes" i64`[n]` (the episode number of each row), "frame_sizes" u32`[n]` and "frames" u8 (the encoded
    observations after the steps, end to end), and the same for the first observations of the episodes that begin in it:
    "first_rows" i64`[m]`, "first_frame_sizes" u32`[m]`, "first_frames" u8 and "first_action_mask" u8`[m, A]`.
    """
    if not episodes:
        return
    lengths = [len(episode) for episode in episodes.values()]
    numbers = np.repeat(np.fromiter(episodes, np.int64), lengths)
    offsets = np.concatenate([np.arange(length) for length in lengths])
    names = [POSITIONS, ACTIONS, REWARDS, ROOT_VALUE, VISIT_POLICY]
    columns = {name: np.concatenate([episode.column(name) for episode in episodes.values()]) for name in names}
    has_mask = next(iter(episodes.values())).has_action_mask
    if has_mask:
        columns[ACTION_MASK] = np.concatenate([episode.column(ACTION_MASK)[1:] for episode in episodes.values()])
    order = np.argsort(columns[POSITIONS])
    segment_of = columns[POSITIONS][order] // SEGMENT_POSITIONS
    for rows in np.split(order, np.flatnonzero(np.diff(segment_of)) + 1):
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
        yield int(columns[POSITIONS][rows[0]]) // SEGMENT_POSITIONS, segment


def read_episodes(
    directory: Path, manifest: dict[str, Any], state: Arrays, codec: FrameCodec
) -> dict[int, StoredEpisode]:
    """The episodes of a save by number, in order.

    Raises:
        ReplayLoadError: their lengths are not those that the state file gives.
    """
    unordered: dict[int, StoredEpisode] = {}
    for path, segment in read_segments(directory, manifest):
        try:
            unpack_segment(segment, unordered, codec=codec, num_actions=manifest["num_actions"])
        except (KeyError, IndexError, ValueError) as error:
            raise ReplayLoadError(f"{path} does not fit the rest of the save: {error!r}.") from error
    lengths = dict(zip(state["episodes"].tolist(), state["lengths"].tolist(), strict=True))
    if {number: len(episode) for number, episode in unordered.items()} != lengths:
        raise ReplayLoadError(f"The segments in {directory} do not hold the episodes that its state file lists.")
    episodes = {number: unordered[number] for number in lengths}
    for i, episode in enumerate(episodes.values()):
        episode.t_started = int(state["t_started"][i])
        episode.end(terminated=bool(state["terminated"][i]), truncated=bool(state["truncated"][i]))
    return episodes


def unpack_segment(
    segment: Mapping[str, npt.NDArray[Any]],
    episodes: dict[int, StoredEpisode],
    *,
    codec: FrameCodec,
    num_actions: int,
) -> None:
    """Adds the segment's steps to `episodes`, making those that begin in it. Segments must come in ascending order.

    Raises:
        KeyError: an array is missing, or a step's episode has not begun.
    """
    numbers = segment["episodes"]
    masks = segment.get("first_action_mask")
    for i, (row, frame) in enumerate(zip(segment["first_rows"], _unpack_frames("first_", segment), strict=True)):
        mask = None if masks is None else masks[i]
        episodes[int(numbers[row])] = StoredEpisode(frame, mask, codec=codec, num_actions=num_actions)
    frames = _unpack_frames("", segment)
    for number in np.unique(numbers):
        rows = np.flatnonzero(numbers == number)
        columns = {name: array[rows] for name, array in segment.items() if len(array) == len(numbers)}
        episodes[int(number)].append([frames[row] for row in rows], columns)


def _pack_frames(prefix: str, frames: list[bytes]) -> Arrays:
    return {
        f"{prefix}frame_sizes": np.array([len(frame) for frame in frames], np.uint32),
        f"{prefix}frames": np.frombuffer(b"".join(frames), np.uint8),
    }


def _unpack_frames(prefix: str, segment: Mapping[str, npt.NDArray[Any]]) -> list[bytes]:
    ends = np.cumsum(segment[f"{prefix}frame_sizes"], dtype=np.int64).tolist()
    joined = segment[f"{prefix}frames"].tobytes()
    return [joined[low:high] for low, high in zip([0, *ends[:-1]], ends, strict=True)] if ends else []
