"""How much of the machine other processes took while something was measured."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

BUSY_SHARE = 0.10
"""More of the CPU than this may not go to other processes while times are taken."""


class BusyMachineError(ValueError):
    """Other processes use the cores, so that times would mean nothing."""


class OtherCpu:
    """Share of the machine's CPU time that other processes took during a `with` block.

    Other means neither this process nor its children, living or waited for.

    Attributes:
        share: 0 to 1, once the block has ended.
    """

    def __enter__(self) -> Self:
        self.share = 0.0
        self._busy = _busy_seconds()
        self._own = _own_seconds()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        machine = machine_seconds(self._start)
        other = (_busy_seconds() - self._busy) - (_own_seconds() - self._own)
        self.share = min(max(other / machine, 0.0), 1.0) if machine > 0 else 0.0


def require_quiet(force: bool, look: float = 1.0) -> None:
    """Look at the machine for `look` seconds.

    Raises:
        BusyMachineError: others use more than a tenth of the CPU, and not forced.
    """
    with OtherCpu() as other:
        time.sleep(look)
    if other.share > BUSY_SHARE and not force:
        raise BusyMachineError(
            f"other processes use {other.share:.0%} of the CPU (limit {BUSY_SHARE:.0%}): end them, "
            "or measure anyway with --force"
        )


def machine_seconds(since: float) -> float:
    """CPU time that all cores together had since `time.perf_counter()` said `since`."""
    return (time.perf_counter() - since) * (psutil.cpu_count() or 1)


def process_seconds(process: psutil.Process) -> float:
    """CPU time of a process and of its children that have ended."""
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def peak_rss_mib() -> float:
    """Most memory that this process has had resident so far, in MiB."""
    # Not getrusage: its figure survives exec, and would be the parent's.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def rss_mib() -> float:
    """Memory that this process has resident now, in MiB."""
    return float(psutil.Process().memory_info().rss / 2**20)


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    counted_twice = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return float(sum(times) - idle - counted_twice)


def _own_seconds() -> float:
    """CPU time of this process, its ended children and its living descendants."""
    ended = os.times()
    total = ended.user + ended.system + ended.children_user + ended.children_system
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += process_seconds(child)
    return total
