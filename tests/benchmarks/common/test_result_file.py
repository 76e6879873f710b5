from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common.machine import OtherCpu, _own_seconds
from benchmarks.common.result_file import write_result


def test_results_have_the_common_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_result("x", "twofour bench x", [{"a": 1}], {"wiki": "00"}, other_cpu_share=0.1)
    result = json.loads(path.read_text())
    assert result["rows"] == [{"a": 1}]
    assert result["data_digests"] == {"wiki": "00"}
    assert result["other_cpu_share"] == 0.1
    assert result["machine"]["cores"] >= 1
    assert result["versions"]["python"]
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_own_work_and_that_of_children_is_not_others(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _own_seconds()
    spin = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", spin], check=True)
    assert _own_seconds() - before >= 0.3


@pytest.mark.parametrize(("busy", "own", "share"), [(4.0, 1.0, 0.75), (1.0, 3.0, 0.0)])
def test_share_of_others(
    monkeypatch: pytest.MonkeyPatch, busy: float, own: float, share: float
) -> None:
    # Two cores for two seconds: 4 s of CPU time in all.
    clock, total, mine = iter([10.0, 12.0]), iter([100.0, 100.0 + busy]), iter([7.0, 7.0 + own])
    monkeypatch.setattr("benchmarks.common.machine.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("benchmarks.common.machine.psutil.cpu_count", lambda: 2)
    monkeypatch.setattr("benchmarks.common.machine._busy_seconds", lambda: next(total))
    monkeypatch.setattr("benchmarks.common.machine._own_seconds", lambda: next(mine))
    with OtherCpu() as other:
        pass
    assert other.share == pytest.approx(share)
