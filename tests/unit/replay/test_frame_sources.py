"""Frames that a device keeps are those that the host would decode, whatever was kept before."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from replay_helpers import interleaved_chunks, random_episode

from rllib_efficientzero.replay import PrioritizedReplay, Windows
from rllib_efficientzero.replay.frame_codec import FrameCodec
from rllib_efficientzero.replay.frame_sources import FramesOnDevice, FrameSource, SampledFrames, decode_on_host

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]
IMAGES = FrameCodec((16, 16, 3), np.dtype(np.uint8))


def kept(max_frames: int, device: str = "cpu", max_bytes: int = 10**9) -> FramesOnDevice:
    return FramesOnDevice(torch.device(device), max_frames=max_frames, max_bytes=max_bytes)


def some_codes(codec: FrameCodec, count: int, seed: int = 0) -> list[bytes]:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 2 if codec.dtype == bool else 100, size=(count, *codec.shape))
    return [codec.encode(frame.astype(codec.dtype)) for frame in frames]


class Sampled(SampledFrames):
    """Frames `indices` of `codes`, whose marks are those of `all_marks`."""

    def __init__(self, codes: Sequence[bytes], indices: np.ndarray, all_marks: np.ndarray) -> None:
        self._codes, self._indices, self._all_marks = codes, indices, all_marks
        self.marks = all_marks[indices]

    def codes(self, rows: np.ndarray | None = None) -> list[bytes]:
        return [self._codes[i] for i in (self._indices if rows is None else self._indices[rows])]

    def note(self, rows: np.ndarray, marks: np.ndarray) -> None:
        self._all_marks[self._indices[rows]] = marks


def unmarked(codes: Sequence[bytes]) -> SampledFrames:
    """Frames that are sampled for the first time."""
    return Sampled(codes, np.arange(len(codes)), np.zeros(len(codes), np.int64))


def assert_as_decoded(source: FrameSource, codec: FrameCodec, codes: Sequence[bytes] | SampledFrames) -> None:
    frames = unmarked(codes) if isinstance(codes, Sequence) else codes
    found, expected = source(codec, frames), decode_on_host(codec, frames)
    assert isinstance(found, torch.Tensor)
    assert found.shape == expected.shape
    assert found.cpu().numpy().dtype == expected.dtype
    np.testing.assert_array_equal(found.cpu().numpy(), expected)


def counting_decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many frames each call decodes."""
    counts: list[int] = []
    decode: Callable[..., None] = FrameCodec.decode

    def counted(self: FrameCodec, codes: Sequence[bytes], *args: object, **kwargs: object) -> None:
        counts.append(len(codes))
        decode(self, codes, *args, **kwargs)

    monkeypatch.setattr(FrameCodec, "decode", counted)
    return counts


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("max_frames", [0, 7, 30, 31, 64, 1000])
@pytest.mark.parametrize(
    "codec",
    [
        IMAGES,
        FrameCodec((5, 5, 3), np.dtype(np.uint8)),
        FrameCodec((3,), np.dtype(np.float32)),
        FrameCodec((4, 2), np.dtype(np.float64)),
        FrameCodec((30, 30), np.dtype(bool)),
        FrameCodec((), np.dtype(np.int64)),
    ],
    ids=str,
)
def test_frames_are_those_that_were_encoded(codec: FrameCodec, max_frames: int, device: str) -> None:
    source, codes, rng = kept(max_frames, device), some_codes(codec, 100), np.random.default_rng(1)
    for _ in range(40):
        assert_as_decoded(source, codec, [codes[i] for i in rng.integers(100, size=30)])


@pytest.mark.parametrize("max_frames", [30, 31, 64, 1000])
def test_marked_frames_are_those_that_were_encoded(max_frames: int) -> None:
    """Whatever gives way between two samples, and though frames with the same code share a place."""
    rng = np.random.default_rng(2)
    codes = some_codes(IMAGES, 100)
    codes = [codes[i] for i in rng.integers(100, size=150)]
    marks = np.zeros(150, np.int64)
    sources = [kept(max_frames), kept(max_frames)]  # which take each other's marks for no marks
    for number in range(60):
        frames = Sampled(codes, rng.integers(150, size=30), marks)
        assert_as_decoded(sources[number // 3 % 2], IMAGES, frames)
        assert (marks[frames._indices] > 0).all()


def test_codes_of_marked_frames_are_not_looked_at() -> None:
    source, codes, marks = kept(50), some_codes(IMAGES, 20), np.zeros(20, np.int64)
    source(IMAGES, Sampled(codes, np.arange(15), marks))
    seen: list[list[int]] = []

    class Watched(Sampled):
        def codes(self, rows: np.ndarray | None = None) -> list[bytes]:
            seen.append([] if rows is None else rows.tolist())
            return super().codes(rows)

    source(IMAGES, Watched(codes, np.arange(10, 20), marks))
    source(IMAGES, Watched(codes, np.arange(20), marks))
    assert seen == [[5, 6, 7, 8, 9]]


def test_marks_of_frames_of_another_shape_say_nothing() -> None:
    source, other = kept(20), FrameCodec((24, 16, 2), np.dtype(np.uint8))
    frames = Sampled(some_codes(IMAGES, 5), np.arange(5), np.zeros(5, np.int64))
    for codec in (IMAGES, other, IMAGES):
        frames = Sampled(frames._codes, frames._indices, frames._all_marks)
        assert_as_decoded(source, codec, frames)


def test_a_frame_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source, codes = kept(50), some_codes(IMAGES, 50)
    counts = counting_decodes(monkeypatch)
    source(IMAGES, unmarked(codes[:30] + codes[:10]))
    source(IMAGES, unmarked(codes[20:]))
    source(IMAGES, unmarked(codes[::-1]))
    assert counts == [30, 20]


def test_the_frame_that_came_first_gives_way_but_none_of_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    source, codes = kept(4), some_codes(IMAGES, 6)
    counts = counting_decodes(monkeypatch)
    source(IMAGES, unmarked(codes[:4]))
    source(IMAGES, unmarked([codes[0], codes[4], codes[5]]))  # in the places of 1 and 2
    source(IMAGES, unmarked([codes[0], codes[3], codes[4], codes[5]]))
    assert counts == [4, 2]
    source(IMAGES, unmarked([codes[1]]))  # in that of 3
    source(IMAGES, unmarked([codes[0], codes[4], codes[5], codes[1]]))
    assert counts == [4, 2, 1]


def test_codes_of_frames_that_gave_way_are_let_go() -> None:
    source, codes = kept(3), some_codes(IMAGES, 6)

    def holders() -> list[int]:
        return [sys.getrefcount(codes[i]) for i in range(3)]

    before = holders()
    source(IMAGES, unmarked(codes[:3]))
    assert all(np.greater(holders(), before))
    source(IMAGES, unmarked(codes[3:]))
    assert holders() == before


def test_samples_that_do_not_fit_are_decoded_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    source, codes = kept(1000, max_bytes=10 * IMAGES.nbytes), some_codes(IMAGES, 20)
    counts = counting_decodes(monkeypatch)
    for size in (10, 11, 10):
        source(IMAGES, unmarked(codes[:size]))
    source(IMAGES, unmarked(3 * codes[:10]))
    assert counts == [10, 11]


def test_a_damaged_code_is_an_error_and_changes_nothing() -> None:
    source, codes = kept(20), some_codes(IMAGES, 10)
    source(IMAGES, unmarked(codes[:5]))
    damaged = codes[7][:-3]
    for _ in range(2):
        with pytest.raises(ValueError, match=f"its {len(damaged)} bytes are damaged"):
            source(IMAGES, unmarked([*codes[3:7], damaged, codes[8]]))
        assert_as_decoded(source, IMAGES, codes)


def test_frames_of_another_shape_begin_anew() -> None:
    source, other = kept(20), FrameCodec((24, 16, 2), np.dtype(np.uint8))
    assert other.nbytes == IMAGES.nbytes
    codes = some_codes(IMAGES, 5)
    for codec in (IMAGES, other, IMAGES):
        assert_as_decoded(source, codec, codes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_is_asked_for_an_eighth_of_its_memory_at_most() -> None:
    source = FramesOnDevice(torch.device("cuda"), max_frames=10**9)
    codec = FrameCodec((96, 96, 3), np.dtype(np.uint8))
    before = torch.cuda.memory_allocated()
    assert_as_decoded(source, codec, some_codes(codec, 3))
    free_and_total = torch.cuda.mem_get_info()
    assert 0 < torch.cuda.memory_allocated() - before <= free_and_total[1] // 8 + 2**20


# --- In the replay ---------------------------------------------------------------------------------------------------


def filled(source: FrameSource, capacity: int = 90) -> PrioritizedReplay:
    rng = np.random.default_rng(0)
    episodes = [random_episode(rng, n, id_=f"e{n}", shape=(16, 16)) for n in (30, 7, 41, 12, 25)]
    replay = PrioritizedReplay(capacity, frame_stack=4, unroll_steps=5, td_steps=5, seed=0, frame_source=source)
    replay.add(interleaved_chunks(rng, episodes)[0])
    return replay


def assert_same_windows(found: Windows, expected: Windows) -> None:
    for field in dataclasses.fields(Windows):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name))


@pytest.mark.parametrize("max_frames", [100, 500])
def test_windows_are_the_same_while_steps_come_and_go(max_frames: int) -> None:
    source = kept(max_frames)
    replay, plain = filled(source), filled(decode_on_host)
    rng = np.random.default_rng(3)
    for number in range(10):
        windows = replay.sample(6, beta=0.4)
        assert isinstance(windows.frames, torch.Tensor)
        assert_same_windows(windows, plain.sample(6, beta=0.4))
        episode = random_episode(rng, 20, id_=f"more{number}", shape=(16, 16))
        replay.add([episode])
        plain.add([episode])


def test_shards_hold_their_part_of_the_frames() -> None:
    windows = filled(kept(500)).sample(8, beta=0.4)
    for shard, expected in zip(windows.split(3), filled(decode_on_host).sample(8, beta=0.4).split(3), strict=True):
        assert_same_windows(shard, expected)


def test_a_loaded_replay_goes_on_with_what_is_kept(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    replay, plain = filled(kept(500)), filled(decode_on_host)
    for each in (replay, plain):
        each.sample(80, beta=0.4)
    replay.save(f"{tmp_path}/replay")
    counts = counting_decodes(monkeypatch)
    replay.load(f"{tmp_path}/replay")
    windows = replay.sample(80, beta=0.4)
    assert sum(counts) < 10
    assert_same_windows(windows, plain.sample(80, beta=0.4))
