"""The CPU engine in a process: `python -m benchmarks.engine.worker DIR OPTIONS`.

A process per arm keeps memory figures apart, and lets arms take turns without loading again. It
speaks `benchmarks.common.worker_protocol`; `_Arm` lists its commands.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common.machine import peak_rss_mib, rss_mib
from benchmarks.common.waves import Wave, run_wave
from benchmarks.common.worker_protocol import answer, serve_async
from engines.base import GenerationRequest
from engines.cpu.idle import shorten_spinning
from engines.sampling import SamplingParams

if TYPE_CHECKING:
    from engines.cpu.engine import CpuEngine


class _Arm:
    """What can be asked of the engine."""

    def __init__(self, engine: CpuEngine) -> None:
        self._engine = engine

    async def wave(self, arguments: dict[str, Any]) -> dict[str, float]:
        """`run_wave` with the arguments of a `Wave`."""
        wave = Wave(**arguments)
        sampling = SamplingParams(temperature=0.0, max_tokens=wave.output_tokens, ignore_eos=True)

        async def generate(number: int, prompt: tuple[int, ...]) -> AsyncIterator[int]:
            mask = None if wave.masks is None else wave.masks[number]
            request = GenerationRequest(f"{wave.seed}-{number}", prompt, sampling, mask)
            async for chunk in self._engine.generate(request):
                if chunk.error is not None:
                    raise RuntimeError(chunk.error)
                yield len(chunk.token_ids)

        return await run_wave(wave, range(self._engine.describe().vocab_size), generate)

    async def memory(self, _: None) -> dict[str, float]:
        """Memory that the process has resident."""
        return {"rss_mib": rss_mib()}

    async def load(self, masks: dict[str, str]) -> dict[str, Any]:
        """Load masks, name -> file: mean time of one, how far they differ, bytes of all so far."""
        begin = time.perf_counter()
        infos = [await self._engine.load_mask(name, Path(file)) for name, file in masks.items()]
        resident = sum(mask.resident_bytes for mask in self._engine.describe().masks)
        return {
            "load_ms": 1e3 * (time.perf_counter() - begin) / max(len(infos), 1),
            "changed_share": {info.name: info.changed_share for info in infos},
            "masks_mib": resident / 2**20,
        }

    async def switch(self, name: str) -> dict[str, float]:
        """Make another mask the base."""
        begin = time.perf_counter()
        await self._engine.switch_base(name)
        return {"switch_ms": 1e3 * (time.perf_counter() - begin)}


async def main(directory: Path, options: dict[str, Any]) -> None:
    """Answer commands until standard input ends."""
    shorten_spinning()
    from engines.cpu.engine import CpuEngine

    engine = CpuEngine(directory, **options)
    info = engine.describe()
    answer(
        {
            "weights_mib": round(info.weight_bytes / 2**20, 1),
            "isa": info.isa,
            "dtype": info.values,
            "load_peak_mib": round(peak_rss_mib(), 1),
        }
    )
    arm = _Arm(engine)
    await serve_async(
        {"wave": arm.wave, "memory": arm.memory, "load": arm.load, "switch": arm.switch}
    )
    await engine.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
