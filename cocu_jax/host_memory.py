"""How the C library handles the memory of arrays on CPU."""

import ctypes
import sys

# Options of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Lets freed memory stay with the process, where the C library is glibc; else does nothing.

    XLA allocates its temporaries anew for every execution. By default glibc maps such large blocks
    one by one and returns them, and the kernel clears every page again each time: a third of the
    processor time of a small model's step. Call it before other threads allocate.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library, such as musl
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_ARENA_MAX, 1)  # the arenas of threads would map large blocks all the same
