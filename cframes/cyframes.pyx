# distutils: language = c++
# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""The binding of cframes/frames.cpp to Python: checks arguments, releases the GIL and calls C++."""

cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t
from libcpp.vector cimport vector

import numpy as np

cnp.import_array()


cdef extern from "frames.hpp" namespace "efficientzero" nogil:
    cdef struct Blocks:
        const uint8_t *const *data
        const size_t *sizes
        int64_t count
        size_t row_size

    int64_t cpp_decode "efficientzero::decode_blocks"(const Blocks&, uint8_t*, int64_t) except +


def decode_blocks(codes, cnp.ndarray out not None, int64_t num_threads=1):
    """Decodes LZ4 blocks into the rows of an array.

    Args:
        codes: n `bytes`; if the same object follows itself, it is decoded once and its row copied.
        out: C-contiguous, writable uint8 `[n, row_size]`; its content is undefined if a block is damaged.
        num_threads: threads among which the rows are divided.

    Returns:
        The first row whose block is damaged or decodes to another size, or -1.

    Raises:
        TypeError: a code is not `bytes`, or `out` is not such an array.
        ValueError: the number of codes is not that of the rows.
    """
    # The tuple keeps every code alive while they are read without the GIL.
    cdef tuple held = tuple(codes)
    cdef vector[const uint8_t*] data
    cdef vector[size_t] sizes
    cdef Blocks blocks
    cdef uint8_t *place
    cdef int64_t first_bad
    if out.dtype != np.uint8 or out.ndim != 2 or not cnp.PyArray_ISCARRAY(out):
        raise TypeError("out must be a writable C-contiguous numpy array of uint8 and shape [n, row_size]")
    if cnp.PyArray_DIM(out, 0) != len(held):
        raise ValueError(f"{len(held)} codes do not fit the {cnp.PyArray_DIM(out, 0)} rows of out")
    data.reserve(len(held))
    sizes.reserve(len(held))
    for code in held:
        if not isinstance(code, bytes):
            raise TypeError(f"codes must be bytes, not {type(code).__name__}")
        data.push_back(<const uint8_t*> PyBytes_AS_STRING(code))
        sizes.push_back(<size_t> PyBytes_GET_SIZE(code))
    blocks.data, blocks.sizes = data.data(), sizes.data()
    blocks.count, blocks.row_size = len(held), cnp.PyArray_DIM(out, 1)
    place = <uint8_t*> cnp.PyArray_DATA(out)
    with nogil:
        first_bad = cpp_decode(blocks, place, num_threads)
    return first_bad
