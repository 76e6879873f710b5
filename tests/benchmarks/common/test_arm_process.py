"""Arms in processes: stopped between their turns with all below them, and ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from benchmarks.common.arm_process import ArmError, ArmProcess, Worker

WORKER = """
import asyncio, json, subprocess, sys
from benchmarks.common.worker_protocol import answer, serve, serve_async
child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
print("{a line of a library}")
answer({"child": child.pid})
def double(x):
    return {"value": 2 * x}
def fail(x):
    raise SystemExit(f"no {x} today")
async def double_async(x):
    return double(x)
try:
    if sys.argv[1:] == ["async"]:
        asyncio.run(serve_async({"double": double_async}))
    else:
        serve({"double": double, "fail": fail})
finally:
    child.kill()
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", WORKER, *arguments]


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(1000):
        if true():
            return
        time.sleep(0.01)
    pytest.fail("it did not come true within ten seconds")


def stopped(pid: int) -> bool:
    return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)


@pytest.mark.parametrize("kind", [[], ["async"]])
def test_a_worker_is_stopped_with_its_children_unless_asked(kind: list[str]) -> None:
    with Worker("spinning", command(*kind)) as worker:
        child = worker.ready["child"]
        wait_until(lambda: stopped(child) and stopped(worker._process.pid))
        assert worker.ask("double", 21) == {"value": 42}
        assert worker.ask("double", 4) == {"value": 8}
        wait_until(lambda: stopped(child))
    wait_until(lambda: not psutil.pid_exists(child))
    assert worker._process.returncode == 0  # by itself, once its input had ended


def test_a_worker_that_dies_says_why() -> None:
    with Worker("weak", command()) as worker:
        with pytest.raises(ArmError, match=r"(?s)the weak arm ended with code 1:.*no bread today"):
            worker.ask("fail", "bread")
        with pytest.raises(ArmError, match="weak arm ended"):
            worker.ask("double", 1)


def test_a_worker_that_does_not_start_says_why() -> None:
    broken = [sys.executable, "-c", "raise SystemExit('nothing to serve')"]
    with (
        pytest.raises(ArmError, match=r"(?s)broken arm ended with code 1:.*nothing to serve"),
        Worker("broken", broken),
    ):
        pytest.fail("it did start")


def test_what_a_process_prints_is_in_its_log(tmp_path: Path) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.stdin.read()"
    arm = ArmProcess("talkative", [sys.executable, "-c", code], log=tmp_path / "log")
    wait_until(lambda: arm._process.poll() is not None)
    with pytest.raises(ArmError, match=r"(?s)code 0:.*(out.*err|err.*out)"):
        arm.alive()
    arm.end()
    assert sorted((tmp_path / "log").read_text().split()) == ["err", "out"]


def test_reading_the_log_does_not_move_the_place_where_it_is_written(tmp_path: Path) -> None:
    code = "print('one', flush=True); import time; time.sleep(60)"
    arm = ArmProcess("slow", [sys.executable, "-c", code], log=tmp_path / "log")
    wait_until(lambda: arm.tail() == "one")
    assert arm.alive().pid == arm._process.pid
    assert arm._log.tell() == len("one\n")
    arm.end()
