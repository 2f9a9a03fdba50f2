"""Memory of a training process on the CPU."""

import ctypes
import os
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's parameters of mallopt
LARGEST_BLOCK = 2**25  # bytes, the largest threshold that older versions of glibc take
MOST_KEPT = 2**31 - 1  # bytes


def keep_freed_memory() -> None:
    """Keep the memory that this process frees, where its C library is glibc.

    A step on the CPU then needs no new pages of the operating system (docs/performance.md). Blocks of 32 MiB and more
    are still returned to it, and nothing changes where the user has set one of glibc's variables.
    """
    if any(name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")):
        return
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
        libc.mallopt(M_TRIM_THRESHOLD, MOST_KEPT)
