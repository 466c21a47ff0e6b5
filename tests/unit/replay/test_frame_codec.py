import numpy as np
import pytest

from rllib_efficientzero.replay.frame_codec import FrameCodec


@pytest.mark.parametrize(
    ("shape", "dtype", "compressed"),
    [
        ((96, 96, 3), np.uint8, True),
        ((10, 10, 8), np.bool_, True),
        ((20, 20), np.int32, True),
        ((84, 84, 1), np.float32, False),
        ((4,), np.float32, False),
        ((4,), np.uint8, False),
        ((), np.int64, False),
    ],
)
def test_round_trip_is_lossless(shape: tuple[int, ...], dtype: type, compressed: bool) -> None:
    rng = np.random.default_rng(0)
    codec = FrameCodec(shape, np.dtype(dtype))
    assert codec.compressed == compressed
    for frame in (rng.integers(0, 2, size=shape).astype(dtype), np.asarray(rng.normal(size=shape) * 100).astype(dtype)):
        decoded = np.empty((1, *shape), dtype)
        codec.decode([codec.encode(frame)], decoded.reshape(1, -1).view(np.uint8))
        np.testing.assert_array_equal(decoded[0], frame)


def test_encodes_views_that_are_not_contiguous() -> None:
    frame = np.random.default_rng(0).integers(0, 256, size=(3, 32, 32), dtype=np.uint8).transpose(1, 2, 0)
    codec = FrameCodec(frame.shape, frame.dtype)
    out = np.empty((1, *frame.shape), np.uint8)
    codec.decode([codec.encode(frame)], out.reshape(1, -1))
    np.testing.assert_array_equal(out[0], frame)


def test_damage_is_an_error() -> None:
    image, vector = FrameCodec((32, 32), np.dtype(np.uint8)), FrameCodec((4,), np.dtype(np.float32))
    with pytest.raises(ValueError, match="stored observation"):
        image.decode([image.encode(np.zeros((32, 32), np.uint8))[:-3]], np.empty((1, image.nbytes), np.uint8))
    with pytest.raises(ValueError, match="its 12 bytes are damaged, or are not one of 16 bytes"):
        vector.decode([b"\0" * 12], np.empty((1, 16), np.uint8))
