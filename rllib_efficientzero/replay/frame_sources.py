"""What makes frames of a sample's codes: decoding on the host, or a device that keeps what was decoded."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rllib_efficientzero.replay.frame_codec import FrameCodec

MAX_DECODING_THREADS = 8
"""Beyond these, writing the frames is limited by memory."""

IntArray = npt.NDArray[np.int64]
_first_numbers = itertools.count(1, 1 << 40)  # of each source in this process: marks of another say nothing to it


class SampledFrames(Protocol):
    """The frames of a sample, n of them, not all different."""

    marks: IntArray
    """`[n]` what was noted last about each by `note`, at first 0"""

    def codes(self, rows: IntArray | None = None) -> list[bytes]:
        """Codes of some of them, or of all."""

    def note(self, rows: IntArray, marks: IntArray) -> None:
        """`marks` `[m]` of the frames `rows` `[m]`, for the samples to come."""


class FrameSource(Protocol):
    """Makes the frames of samples."""

    def __call__(self, codec: FrameCodec, frames: SampledFrames) -> npt.NDArray[Any] | Tensor:
        """`[n, *codec.shape]` in the codec's dtype; raises as `FrameCodec.decode` does."""


def decode_on_host(codec: FrameCodec, frames: SampledFrames) -> npt.NDArray[Any]:
    """See `FrameSource`. By as many threads as torch has."""
    codes = frames.codes()
    decoded = np.empty((len(codes), *codec.shape), codec.dtype)
    num_threads = min(torch.get_num_threads(), MAX_DECODING_THREADS)
    codec.decode(codes, decoded.reshape(len(codes), -1).view(np.uint8), num_threads=num_threads)
    return decoded


class FramesOnDevice:
    """Decodes a frame once and keeps it in a device's memory, where samples are put together.

    A position is sampled many times: of a run on Atari every frame about 4,000 times. Frames are found by their codes,
    so whatever happens to the replay, what is found is what would be decoded. When the memory is full, the frame that
    came first gives way; it is decoded again when it is asked for. Samples that do not fit are decoded as a whole.

    To look up thousands of codes, each somewhere in memory, would take the host longer than all else in a sample. So
    whatever comes into a slot gets a number, which is never used again and has the slot as its remainder; it becomes
    the frame's mark. While it is its slot's number, the frame is there.
    """

    def __init__(self, device: torch.device, *, max_frames: int, max_bytes: int | None = None) -> None:
        """Args:
        device: where to keep frames, and where samples will be.
        max_frames: as many as will ever be asked for, such as the replay's capacity.
        max_bytes: memory to use at most. None, on a GPU: an eighth of it, or half of what is free if that is less.
        """
        self._device = device
        self._max_frames, self._max_bytes = max_frames, max_bytes
        self._codec: FrameCodec | None = None
        self._next_number = next(_first_numbers)

    def __call__(self, codec: FrameCodec, frames: SampledFrames) -> Tensor:
        """See `FrameSource`. Computed on the current stream."""
        if codec != self._codec:
            self._begin(codec)
        slots = self._slots_of(codec, frames)
        if slots is None:
            rows = self._decoded(codec, frames.codes())
        else:
            rows = self._rows.index_select(0, self._sent(slots))
        dtype = torch.from_numpy(np.empty(0, codec.dtype)).dtype
        return rows.view(dtype).view(len(frames.marks), *codec.shape)

    def _begin(self, codec: FrameCodec) -> None:
        """With nothing, for the frames of one codec."""
        max_bytes = self._max_bytes
        if max_bytes is None:
            free, total = torch.cuda.mem_get_info(self._device)
            max_bytes = min(total // 8, free // 2)
        num_frames = min(self._max_frames, max_bytes // codec.nbytes)
        # Numbers of 64 bits: to pick out rows takes its time per number.
        wide = codec.nbytes % 8 == 0
        row_size, dtype = (codec.nbytes // 8, torch.int64) if wide else (codec.nbytes, torch.uint8)
        self._rows = torch.empty((num_frames, row_size), dtype=dtype, device=self._device)
        self._slot_of: dict[bytes, int] = {}
        self._code_of_slot: list[bytes | None] = [None] * num_frames
        self._number_of_slot = np.full(num_frames, -1, np.int64)
        self._codec = codec

    def _slots_of(self, codec: FrameCodec, frames: SampledFrames) -> IntArray | None:
        """Where the frames are, once those that were missing have been decoded; None: they do not fit."""
        if len(self._number_of_slot) == 0:
            return None
        slots = frames.marks % len(self._number_of_slot)
        unmarked = np.flatnonzero(self._number_of_slot[slots] != frames.marks)
        if len(unmarked) > 0:
            codes = frames.codes(unmarked)
            slots[unmarked] = found = [self._slot_of.get(code, -1) for code in codes]
            missing = list(dict.fromkeys(code for code, slot in zip(codes, found, strict=True) if slot < 0))
            if missing:
                in_use = np.zeros(len(self._number_of_slot), np.bool_)
                in_use[slots[slots >= 0]] = True
                if len(missing) + np.count_nonzero(in_use) > len(in_use):
                    return None
                self._keep(codec, missing, in_use)
                slots[unmarked] = [self._slot_of[code] for code in codes]
            frames.note(unmarked, self._number_of_slot[slots[unmarked]])
        return slots

    def _keep(self, codec: FrameCodec, codes: Sequence[bytes], in_use: npt.NDArray[np.bool_]) -> None:
        """Decodes frames into the next slots that are not `in_use`."""
        numbers: list[int] = []
        while len(numbers) < len(codes):
            if not in_use[self._next_number % len(in_use)]:
                numbers.append(self._next_number)
            self._next_number += 1
        slots = np.array(numbers) % len(in_use)
        rows = self._decoded(codec, codes)
        self._rows.index_copy_(0, self._sent(slots), rows.view(self._rows.dtype))
        # Last: until here something may be raised.
        self._number_of_slot[slots] = numbers
        for slot, code in zip(slots.tolist(), codes, strict=True):
            given_way = self._code_of_slot[slot]
            if given_way is not None:
                del self._slot_of[given_way]
            self._code_of_slot[slot] = code
            self._slot_of[code] = slot

    def _decoded(self, codec: FrameCodec, codes: Sequence[bytes]) -> Tensor:
        """u8`[len(codes), nbytes]` on the device. On a GPU's host the other cores have little to do: all decode."""
        on_gpu = self._device.type == "cuda"
        rows = torch.empty((len(codes), codec.nbytes), dtype=torch.uint8, pin_memory=on_gpu)
        num_threads = min(len(os.sched_getaffinity(0)), MAX_DECODING_THREADS)
        codec.decode(codes, rows.numpy(), num_threads=num_threads)
        return rows.to(self._device, non_blocking=True)

    def _sent(self, slots: IntArray) -> Tensor:
        """A copy on the device, which the host does not wait for."""
        numbers = torch.from_numpy(slots)
        pinned = numbers.pin_memory() if self._device.type == "cuda" else numbers
        return pinned.to(self._device, non_blocking=True)
