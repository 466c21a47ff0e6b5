"""What makes frames of a sample's codes: decoding on the host, or a device that keeps what was decoded."""

from __future__ import annotations

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


class FrameSource(Protocol):
    """Makes frames of codes."""

    def __call__(self, codec: FrameCodec, codes: Sequence[bytes]) -> npt.NDArray[Any] | Tensor:
        """`[len(codes), *codec.shape]` in the codec's dtype; raises as `FrameCodec.decode` does."""


def decode_on_host(codec: FrameCodec, codes: Sequence[bytes]) -> npt.NDArray[Any]:
    """See `FrameSource`. By as many threads as torch has."""
    frames = np.empty((len(codes), *codec.shape), codec.dtype)
    num_threads = min(torch.get_num_threads(), MAX_DECODING_THREADS)
    codec.decode(codes, frames.reshape(len(codes), -1).view(np.uint8), num_threads=num_threads)
    return frames


class FramesOnDevice:
    """Decodes a frame once and keeps it in a device's memory, where samples are put together.

    A position is sampled many times: of a run on Atari every frame about 4,000 times. Frames are found by their codes,
    so whatever happens to the replay, what is found is what would be decoded. When the memory is full, the frame that
    came first gives way; it is decoded again when it is asked for. Samples that do not fit are decoded as a whole.

    Example:
        >>> codec = FrameCodec((2,), np.dtype(np.int64))
        >>> source = FramesOnDevice(torch.device("cpu"), max_frames=8, max_bytes=1000)
        >>> codes = [codec.encode(np.array(frame)) for frame in ([1, 2], [3, 4])]
        >>> source(codec, [codes[0], codes[1], codes[0]]).tolist()
        [[1, 2], [3, 4], [1, 2]]
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

    def __call__(self, codec: FrameCodec, codes: Sequence[bytes]) -> Tensor:
        """See `FrameSource`. Computed on the current stream."""
        if codec != self._codec:
            self._begin(codec)
        slots = self._slots_of(codec, codes)
        if slots is None:
            rows = self._decoded(codec, codes)
        else:
            rows = self._rows.index_select(0, self._sent(slots))
        dtype = torch.from_numpy(np.empty(0, codec.dtype)).dtype
        return rows.view(dtype).view(len(codes), *codec.shape)

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
        self._next_slot = 0
        self._codec = codec

    def _slots_of(self, codec: FrameCodec, codes: Sequence[bytes]) -> list[int] | None:
        """Where the frames are, once those that were missing have been decoded; None: they do not fit."""
        found = [self._slot_of.get(code) for code in codes]
        slots = [slot for slot in found if slot is not None]
        if len(slots) < len(codes):
            missing = list(dict.fromkeys(code for code, slot in zip(codes, found, strict=True) if slot is None))
            in_use = set(slots)
            if len(missing) + len(in_use) > len(self._code_of_slot):
                return None
            self._keep(codec, missing, in_use)
            slots = [self._slot_of[code] for code in codes]
        return slots

    def _keep(self, codec: FrameCodec, codes: Sequence[bytes], in_use: set[int]) -> None:
        slots: list[int] = []
        while len(slots) < len(codes):
            if self._next_slot not in in_use:
                slots.append(self._next_slot)
            self._next_slot = (self._next_slot + 1) % len(self._code_of_slot)
        rows = self._decoded(codec, codes)
        self._rows.index_copy_(0, self._sent(slots), rows.view(self._rows.dtype))
        # Last: until here something may be raised.
        for slot, code in zip(slots, codes, strict=True):
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

    def _sent(self, slots: list[int]) -> Tensor:
        """A copy on the device, which the host does not wait for."""
        # By way of NumPy, which takes a tenth of torch's time for a list.
        numbers = torch.from_numpy(np.array(slots, np.int64))
        pinned = numbers.pin_memory() if self._device.type == "cuda" else numbers
        return pinned.to(self._device, non_blocking=True)
