"""Keep freed memory in the process, so that a step finds the last step's pages again.

glibc gives every block above 32 MiB back to the system when it is freed. A step frees and asks for
gigabytes of activations, and the kernel zeroes every page again: 1.4 of 7.3 s of a step of 2,048
tokens of SmolLM2-135M (docs/experiments.md).
"""

from __future__ import annotations

import ctypes
import platform

# Parameters of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD = -1  # set to -1: never
_TOP_PAD = -2
_MMAP_MAX = -4
_ARENA_MAX = -8


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep what is freed; says whether it could (elsewhere it does nothing).

    The process then holds on to its largest size until it ends.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 2**28, _ARENA_MAX: 1}
    return all(mallopt(name, value) == 1 for name, value in settings.items())
