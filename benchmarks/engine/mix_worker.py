"""An engine with many masks in a process: `python -m benchmarks.engine.mix_worker DIR OPTIONS`.

Speaks `benchmarks.engine.worker`'s protocol, with the commands {"load": {name: file}},
{"switch": name} and {"wave": arguments of `run_wave`}; every answer has the process's memory.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.engine.worker import run_wave
from engines.cpu.engine import CpuEngine


async def serve(directory: Path, options: dict[str, Any]) -> None:
    """Answer commands until standard input ends."""
    engine = CpuEngine(directory, **options)
    _answer({"isa": engine.describe().isa})
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        (name, value), *_ = json.loads(line).items()
        _answer(await _COMMANDS[name](engine, value))
    await engine.close()


async def _load(engine: CpuEngine, masks: dict[str, str]) -> dict[str, Any]:
    begin = time.perf_counter()
    infos = [await engine.load_mask(name, Path(file)) for name, file in masks.items()]
    return {
        "load_ms": 1e3 * (time.perf_counter() - begin) / max(len(infos), 1),
        "changed_share": {info.name: info.changed_share for info in infos},
        "masks_mib": sum(m.resident_bytes for m in engine.describe().masks) / 2**20,
    }


async def _switch(engine: CpuEngine, name: str) -> dict[str, Any]:
    begin = time.perf_counter()
    await engine.switch_base(name)
    return {"switch_ms": 1e3 * (time.perf_counter() - begin)}


async def _wave(engine: CpuEngine, arguments: dict[str, Any]) -> dict[str, Any]:
    return dict(await run_wave(engine, **arguments))


_COMMANDS: dict[str, Callable[[CpuEngine, Any], Awaitable[dict[str, Any]]]] = {
    "load": _load,
    "switch": _switch,
    "wave": _wave,
}


def _answer(value: dict[str, Any]) -> None:
    memory = {"resident_mib": psutil.Process().memory_info().rss / 2**20}
    sys.stdout.write(json.dumps(value | memory) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), json.loads(sys.argv[2])))
