"""Sources of a sample's frames: decoding on the host, or a cache of decoded frames on a device."""

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
"""More threads would not help, since memory limits how fast frames are written."""

IntArray = npt.NDArray[np.int64]
_first_numbers = itertools.count(1, 1 << 40)  # one per source in this process, so that no two sources share a number


class SampledFrames(Protocol):
    """The n frames of a sample, which may repeat."""

    marks: IntArray
    """`[n]` the mark that `note` last gave each frame, initially 0"""

    def codes(self, rows: IntArray | None = None) -> list[bytes]:
        """The encoded frames of some rows; None: of all."""

    def note(self, rows: IntArray, marks: IntArray) -> None:
        """Gives the frames `rows` `[m]` the marks `marks` `[m]`, for later samples."""


class FrameSource(Protocol):
    """Makes the frames of samples."""

    def __call__(self, codec: FrameCodec, frames: SampledFrames) -> npt.NDArray[Any] | Tensor:
        """`[n, *codec.shape]` in the codec's dtype; raises as `FrameCodec.decode` does."""


def decode_on_host(codec: FrameCodec, frames: SampledFrames) -> npt.NDArray[Any]:
    """See `FrameSource`. Decodes on the host, with as many threads as torch uses."""
    codes = frames.codes()
    decoded = np.empty((len(codes), *codec.shape), codec.dtype)
    num_threads = min(torch.get_num_threads(), MAX_DECODING_THREADS)
    codec.decode(codes, decoded.reshape(len(codes), -1).view(np.uint8), num_threads=num_threads)
    return decoded


class FramesOnDevice:
    """Decodes each frame once and caches it in a device's memory, where samples are put together.

    Positions are sampled many times: in a run on Atari, each frame is used about 4,000 times. The cache is keyed by the
    frames' codes, so that it never returns anything but the decoded frame, whatever happens to the replay. When it is
    full, the oldest frame is evicted, and decoded again when it is needed. Samples too large for the cache are decoded
    as a whole.

    Looking up thousands of codes, scattered over memory, would take the host longer than the rest of a sample. So each
    frame that enters a slot gets a number, never used again, whose remainder by the number of slots is the slot. This
    number becomes the frame's mark. As long as it is still the slot's number, the frame is there.
    """

    def __init__(self, device: torch.device, *, max_frames: int, max_bytes: int | None = None) -> None:
        """Args:
        device: where to keep frames, and where samples will be.
        max_frames: the most frames that will ever be needed, such as the replay's capacity.
        max_bytes: the most memory to use. None, for GPUs: an eighth of all, or half of what is free if that is less.
        """
        self._device = device
        self._max_frames, self._max_bytes = max_frames, max_bytes
        self._codec: FrameCodec | None = None
        self._next_number = next(_first_numbers)

    def __call__(self, codec: FrameCodec, frames: SampledFrames) -> Tensor:
        """See `FrameSource`. The frames are computed on the current stream."""
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
        """Starts an empty cache for the frames of one codec."""
        max_bytes = self._max_bytes
        if max_bytes is None:
            free, total = torch.cuda.mem_get_info(self._device)
            max_bytes = min(total // 8, free // 2)
        num_frames = min(self._max_frames, max_bytes // codec.nbytes)
        # As int64 where possible: the time of gathering rows depends on the number of elements.
        wide = codec.nbytes % 8 == 0
        row_size, dtype = (codec.nbytes // 8, torch.int64) if wide else (codec.nbytes, torch.uint8)
        self._rows = torch.empty((num_frames, row_size), dtype=dtype, device=self._device)
        self._slot_of: dict[bytes, int] = {}
        self._code_of_slot: list[bytes | None] = [None] * num_frames
        self._number_of_slot = np.full(num_frames, -1, np.int64)
        self._codec = codec

    def _slots_of(self, codec: FrameCodec, frames: SampledFrames) -> IntArray | None:
        """Decodes the frames that are missing, and returns the slots of all; None if they do not fit."""
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
        """Decodes frames into the next slots that are not `in_use`, and evicts the frames in them."""
        numbers: list[int] = []
        while len(numbers) < len(codes):
            if not in_use[self._next_number % len(in_use)]:
                numbers.append(self._next_number)
            self._next_number += 1
        slots = np.array(numbers) % len(in_use)
        rows = self._decoded(codec, codes)
        self._rows.index_copy_(0, self._sent(slots), rows.view(self._rows.dtype))
        # Update the index last, since the code above may raise.
        self._number_of_slot[slots] = numbers
        for slot, code in zip(slots.tolist(), codes, strict=True):
            given_way = self._code_of_slot[slot]
            if given_way is not None:
                del self._slot_of[given_way]
            self._code_of_slot[slot] = code
            self._slot_of[code] = slot

    def _decoded(self, codec: FrameCodec, codes: Sequence[bytes]) -> Tensor:
        """u8`[len(codes), nbytes]` on the device. Up to MAX_DECODING_THREADS cores decode: beside a GPU they have
        little else to do."""
        on_gpu = self._device.type == "cuda"
        rows = torch.empty((len(codes), codec.nbytes), dtype=torch.uint8, pin_memory=on_gpu)
        num_threads = min(len(os.sched_getaffinity(0)), MAX_DECODING_THREADS)
        codec.decode(codes, rows.numpy(), num_threads=num_threads)
        return rows.to(self._device, non_blocking=True)

    def _sent(self, slots: IntArray) -> Tensor:
        """Copies slots to the device without waiting."""
        numbers = torch.from_numpy(slots)
        pinned = numbers.pin_memory() if self._device.type == "cuda" else numbers
        return pinned.to(self._device, non_blocking=True)
