"""How the process that learns treats freed memory."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)


def reuse_freed_memory() -> bool:
    """Let glibc's allocator keep what is freed for the next allocation, instead of handing it back to the system.

    By its defaults, activations of a few megabytes are mapped and unmapped again in every forward pass, and each of
    their pages faults once: a quarter of the time of a small network's update on a CPU. The process then stays as large
    as it has been at its largest. It applies to the whole process, and may be called again.

    Returns:
        Whether it took effect; not with another C library than glibc.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # glibc once refused to keep blocks of more than 32 MiB off mmap.
    mapped_from = mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)
    return bool(mapped_from and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
