"""The C library's allocator, told to keep what training frees."""

import ctypes
from typing import Final

# <malloc.h>
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_LARGEST: Final = 2**31 - 1
_ONE_GIB: Final = 2**30


def keep_freed_memory() -> None:
    """Reuse freed activations instead of returning them to the kernel.

    glibc maps and unmaps every large block; a training step on a CPU then spends a quarter of its
    time in page faults. Other C libraries have no mallopt and stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _ONE_GIB)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)
