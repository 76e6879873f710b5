"""One engine in a process, measured on command: `python -m benchmarks.engine.worker DIR OPTIONS`.

Reads one JSON object a line from standard input and answers with one line on standard output. A
process per arm keeps memory figures apart, and lets arms take turns without loading again.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from engines.base import GenerationRequest
from engines.cpu.engine import CpuEngine
from engines.sampling import SamplingParams


async def run_wave(
    engine: CpuEngine,
    prompt_tokens: int,
    output_tokens: int,
    concurrency: int,
    seed: int,
    masks: Sequence[str] | None = None,
) -> dict[str, float]:
    """Start `concurrency` greedy requests with random prompts at once; figures of the wave.

    `masks` names the mask of each request; all use the default one otherwise.
    """
    rng = random.Random(seed)
    vocab = engine.describe().vocab_size
    params = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
    begin = time.perf_counter()
    first: list[float] = []
    last: list[float] = []

    async def one(number: int) -> None:
        prompt = tuple(rng.randrange(vocab) for _ in range(prompt_tokens))
        times = []
        mask = None if masks is None else masks[number]
        request = GenerationRequest(f"{seed}-{number}", prompt, params, mask)
        async for chunk in engine.generate(request):
            if chunk.error is not None:
                raise RuntimeError(chunk.error)
            times += [time.perf_counter()] * len(chunk.token_ids)
        if len(times) != output_tokens:
            raise RuntimeError(f"{len(times)} tokens came, {output_tokens} were asked for")
        first.append(times[0] - begin)
        last.append(times[-1] - begin)

    await asyncio.gather(*(one(i) for i in range(concurrency)))
    wall = max(last)
    later = max(output_tokens - 1, 1)
    decode = max(wall - max(first), 1e-9)
    return {
        "tokens_per_s": concurrency * output_tokens / wall,
        "prompt_tokens_per_s": concurrency * prompt_tokens / max(first),
        # From the last first token on, every sequence only generates.
        "decode_tokens_per_s": _decode_rate(first, last, later, decode),
        "ttft_ms": 1e3 * sum(first) / concurrency,
        "tpot_ms": 1e3 * sum(b - a for a, b in zip(first, last, strict=True)) / concurrency / later,
    }


def _decode_rate(first: list[float], last: list[float], later: int, decode: float) -> float:
    start = max(first)
    tokens = sum(
        later * max(end - start, 0.0) / (end - begin)
        for begin, end in zip(first, last, strict=True)
        if end > begin
    )
    return tokens / decode


async def serve(directory: Path, options: dict[str, Any]) -> None:
    """Answer commands until standard input ends."""
    engine = CpuEngine(directory, **options)
    info = engine.describe()
    _answer(
        {
            "ready": True,
            "weights_mib": round(info.weight_bytes / 2**20, 1),
            "isa": info.isa,
            "dtype": "bf16",
            "load_peak_mib": round(_peak_mib(), 1),
        }
    )
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        if command == "memory":
            _answer({"rss_mib": psutil.Process().memory_info().rss / 2**20})
        else:
            _answer(await run_wave(engine, **command))
    await engine.close()


def _peak_mib() -> float:
    """Most memory that this process has had resident so far, in MiB."""
    # Not getrusage: its figure survives exec, and would be the parent's.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _answer(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), json.loads(sys.argv[2])))
