"""What the machine did besides, and whether that is too much."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from benchmarks.common import machine
from benchmarks.common.machine import BusyMachineError, OtherCpu, require_quiet


def test_own_work_and_that_of_children_is_not_others() -> None:
    before = machine._own_seconds()
    spin = "import time; end = time.process_time() + 0.35\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", spin], check=True)
    assert machine._own_seconds() - before >= 0.3


@pytest.mark.parametrize(("busy", "own", "share"), [(4.0, 1.0, 0.75), (1.0, 3.0, 0.0)])
def test_share_of_others(
    monkeypatch: pytest.MonkeyPatch, busy: float, own: float, share: float
) -> None:
    # Two cores for two seconds: 4 s of CPU time in all.
    clock, total, mine = iter([10.0, 12.0]), iter([100.0, 100.0 + busy]), iter([7.0, 7.0 + own])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(machine.psutil, "cpu_count", lambda: 2)
    monkeypatch.setattr(machine, "_busy_seconds", lambda: next(total))
    monkeypatch.setattr(machine, "_own_seconds", lambda: next(mine))
    with OtherCpu() as other:
        pass
    assert other.share == pytest.approx(share)


def test_a_busy_machine_is_refused_unless_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy(OtherCpu):
        def __exit__(self, *error: object) -> None:
            self.share = 0.4

    monkeypatch.setattr(machine, "OtherCpu", Busy)
    with pytest.raises(BusyMachineError, match=r"use 40% of the CPU \(limit 10%\).*--force"):
        require_quiet(force=False, look=0.0)
    require_quiet(force=True, look=0.0)


def test_memory_and_time_are_those_of_the_system() -> None:
    own = psutil.Process(os.getpid())
    assert machine.peak_rss_mib() >= 0.9 * machine.rss_mib() > 0
    times = own.cpu_times()
    assert machine.process_seconds(own) >= times.user + times.system
