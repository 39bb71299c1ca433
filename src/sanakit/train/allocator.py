"""Memory that a step frees is kept for the next one, where computing is done by a CPU."""

from __future__ import annotations

import ctypes
import sys

# Names of glibc's <malloc.h>.
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have this process reuse freed memory rather than return it; whether that could be set.

    By default glibc maps each large tensor anew, and the system fills its pages with zeros before
    the first write: for tensors of tens of megabytes, two thirds of the time of an activation
    function. Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        mallopt(option, value) == 1 for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER))
    )
