"""Decoding of LZ4 blocks into place: the extension and the lz4 package, each against the other."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Sequence

import lz4.block
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_efficientzero.replay import lz4_decoder

Decoder = Callable[..., int]
DECODERS: dict[str, Decoder] = {"lz4": lz4_decoder.decode_blocks}
if importlib.util.find_spec("rllib_efficientzero._frames") is not None:
    from rllib_efficientzero import _frames

    DECODERS["extension"] = _frames.decode_blocks


@pytest.fixture(params=sorted(DECODERS))
def decode(request: pytest.FixtureRequest) -> Decoder:
    return DECODERS[request.param]


def compress(data: bytes, **options: object) -> bytes:
    return lz4.block.compress(data, store_size=False, **options)


def frame(rng: np.random.Generator, size: int) -> bytes:
    """Runs of patterns of all lengths, and noise."""
    pieces: list[bytes] = []
    while sum(map(len, pieces)) < size:
        pattern = rng.integers(0, 256, size=int(rng.integers(1, 40)), dtype=np.uint8).tobytes()
        pieces.append(pattern * int(rng.choice([1, 1, 2, 7, 50, 700])))
    return b"".join(pieces)[:size]


def decoded(decode: Decoder, codes: Sequence[bytes], size: int, **options: int) -> np.ndarray:
    out = np.empty((len(codes), size), np.uint8)
    assert decode(codes, out, **options) == -1
    return out


@pytest.mark.parametrize("size", [1, 4, 15, 16, 17, 300, 9216, 70_000])
@pytest.mark.parametrize("options", [{}, {"mode": "high_compression", "compression": 12}, {"mode": "fast"}])
def test_what_was_compressed_comes_back(decode: Decoder, size: int, options: dict[str, object]) -> None:
    rng = np.random.default_rng(size)
    frames = [frame(rng, size) for _ in range(20)]
    out = decoded(decode, [compress(data, **options) for data in frames], size)
    assert [row.tobytes() for row in out] == frames


WITHOUT_THREADS = """
import resource, sys
import lz4.block, numpy as np
from rllib_efficientzero import _frames

rows = np.random.default_rng(0).integers(0, 4, size=(2000, 300), dtype=np.uint8)
codes, out = [lz4.block.compress(row.tobytes(), store_size=False) for row in rows], np.zeros_like(rows)
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + (100 << 20),) * 2)  # a thread takes 8 MiB
assert _frames.decode_blocks(codes, out, num_threads=500) == -1
sys.exit(not np.array_equal(rows, out))
"""


@pytest.mark.skipif("extension" not in DECODERS, reason="the extension is not built")
def test_threads_that_the_system_does_not_have_are_not_missed() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_THREADS], check=True, timeout=60)


@given(data=st.binary(min_size=1, max_size=400), repeats=st.integers(1, 300))
@settings(max_examples=100, deadline=None)
def test_any_bytes_come_back(data: bytes, repeats: int) -> None:
    whole = (data * repeats)[:4000]
    for decode in DECODERS.values():
        assert decoded(decode, [compress(whole)], len(whole))[0].tobytes() == whole


def test_a_repeated_code_fills_every_row_of_its_own(decode: Decoder) -> None:
    rng = np.random.default_rng(0)
    first, second = (frame(rng, 500) for _ in range(2))
    codes = [compress(first), compress(second)]
    order = [0, 0, 0, 1, 0, 1, 1]
    for num_threads in (1, 2, 3, 7, 50):
        out = decoded(decode, [codes[i] for i in order], 500, num_threads=num_threads)
        assert [row.tobytes() for row in out] == [(first, second)[i] for i in order]


def test_threads_change_nothing(decode: Decoder) -> None:
    rng = np.random.default_rng(0)
    codes = [compress(frame(rng, 2000)) for _ in range(101)]
    expected = decoded(decode, codes, 2000)
    for num_threads in (0, 2, 4, 200):
        np.testing.assert_array_equal(decoded(decode, codes, 2000, num_threads=num_threads), expected)


def test_nothing_to_decode(decode: Decoder) -> None:
    assert decode([], np.empty((0, 100), np.uint8), num_threads=4) == -1


def test_the_first_damaged_row_is_named(decode: Decoder) -> None:
    rng = np.random.default_rng(0)
    codes = [compress(frame(rng, 1000)) for _ in range(40)]
    for row in (0, 17, 39):
        for bad in (b"", codes[row][:-1], codes[row] + b"\0", compress(bytes(999)), compress(bytes(1001))):
            damaged = [bad if i == row or i == 39 else code for i, code in enumerate(codes)]
            for num_threads in (1, 3):
                assert decode(damaged, np.empty((40, 1000), np.uint8), num_threads=num_threads) == row


@pytest.mark.skipif("extension" not in DECODERS, reason="the extension is not built")
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=300, deadline=None)
def test_damage_is_never_read_or_written_beyond_the_row(seed: int) -> None:
    """Whatever the bytes say; and what both take for whole, both read alike. (liblz4 lets more pass.)"""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 700))
    code = bytearray(compress(frame(rng, size)))
    for _ in range(int(rng.integers(1, 4))):
        code[int(rng.integers(len(code)))] = int(rng.choice([0, 1, 15, 16, 240, 255, rng.integers(256)]))
    code = code[: int(rng.integers(0, len(code) + 1))] if rng.random() < 0.3 else code
    guarded = np.full((3, size), 7, np.uint8)
    expected = np.empty((1, size), np.uint8)
    found = [DECODERS["lz4"]([bytes(code)], expected), DECODERS["extension"]([bytes(code)], guarded[1:2])]
    assert found[1] in (-1, 0)
    if found == [-1, -1]:
        np.testing.assert_array_equal(guarded[1:2], expected)
    assert (guarded[[0, 2]] == 7).all()


@pytest.mark.skipif("extension" not in DECODERS, reason="the extension is not built")
def test_arguments_that_cannot_be_are_refused() -> None:
    decode, codes, out = DECODERS["extension"], [compress(bytes(10))] * 2, np.empty((2, 10), np.uint8)
    read_only = np.empty((2, 10), np.uint8)
    read_only.flags.writeable = False
    for bad in (np.empty((2, 10), np.int8), np.empty(20, np.uint8), np.empty((2, 20), np.uint8)[:, ::2], read_only):
        with pytest.raises(TypeError, match="out must be"):
            decode(codes, bad)
    for bad_out in (None, [1]):
        with pytest.raises(TypeError):
            decode(codes, bad_out)
    with pytest.raises(ValueError, match="2 codes do not fit the 3 rows"):
        decode(codes, np.empty((3, 10), np.uint8))
    for bad_codes in ([codes[0], bytearray(codes[1])], [codes[0], None]):
        with pytest.raises(TypeError, match="codes must be bytes"):
            decode(bad_codes, out)
