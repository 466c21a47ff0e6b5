"""The decoder of `cframes/` with the lz4 package: three times as slow, and the reference in its tests."""

from __future__ import annotations

from collections.abc import Sequence

import lz4.block
import numpy as np
import numpy.typing as npt


def decode_blocks(codes: Sequence[bytes], out: npt.NDArray[np.uint8], num_threads: int = 1) -> int:
    """Decode LZ4 blocks into the rows of `out` u8`[n, row_size]`; `num_threads` is not used.

    Returns:
        The first row whose block is damaged or decodes to another size, or -1.
    """
    size = out.shape[1]
    previous = None
    for row, code in enumerate(codes):
        if code is previous:
            out[row] = out[row - 1]
            continue
        try:
            decoded = lz4.block.decompress(code, uncompressed_size=size)
        except (lz4.block.LZ4BlockError, ValueError):
            return row
        if len(decoded) != size:
            return row
        out[row].data[:] = decoded
        previous = code
    return -1
