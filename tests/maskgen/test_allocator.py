"""Freed memory stays in the process: asked for again, its pages are there."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_TOUCH_TWICE = """
import ctypes, resource
from maskgen.learning.allocator import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size = 256 << 20
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults_of_the_second_touch(keep: bool) -> int:
    program = _TOUCH_TWICE.format(keep=keep)
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return int(output.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep memory anyway")
def test_a_block_that_was_freed_costs_no_page_faults_when_asked_for_again():
    assert _faults_of_the_second_touch(keep=True) < 1000 < _faults_of_the_second_touch(keep=False)
