"""Settings of the C library's memory allocator, for arrays on the CPU."""

import ctypes
import sys

# Options of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Keeps freed memory in the process if the C library is glibc; otherwise does nothing.

    XLA allocates temporary buffers for every execution. By default glibc maps and unmaps each large
    block, so that the kernel clears every page again: a third of the processor time of a small
    model's step. Call this before other threads allocate memory.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library, such as musl
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_ARENA_MAX, 1)  # other threads' arenas would still map large blocks
