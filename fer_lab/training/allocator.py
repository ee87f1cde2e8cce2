"""The C library's allocator, set for training on a CPU."""

from __future__ import annotations

import ctypes
import platform

# malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Let this process keep what it frees instead of giving it back to the system; returns whether that could be set.

    A training step frees and asks again for gigabytes of activations. glibc maps every large block anew, and the system
    clears each page again at the first touch: a tenth to a fifth of V2B0's step. Held on to, the same blocks come back
    at once, and the process grows no larger than its largest step. Other C libraries are left as they are. It lasts
    as long as the process, so the commands call this, never the library. Source: mallopt(3).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0) and libc.mallopt(M_TRIM_THRESHOLD, -1))
