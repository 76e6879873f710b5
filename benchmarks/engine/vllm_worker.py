"""vLLM as an arm of `twofour bench engine`, run by the Python of vLLM's own environment.

Speaks the protocol of `benchmarks.engine.worker`, and imports nothing of ours: that environment
need not have it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from typing import Any


async def run_wave(
    engine: Any, prompt_tokens: int, output_tokens: int, concurrency: int, seed: int
) -> dict[str, float]:
    """Start `concurrency` greedy requests with random prompts at once; figures of the wave."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    rng = random.Random(seed)
    params = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
    begin = time.perf_counter()
    first: list[float] = []
    last: list[float] = []

    async def one(number: int) -> None:
        ids = [rng.randrange(10, 30_000) for _ in range(prompt_tokens)]
        times: list[float] = []
        async for output in engine.generate(
            TokensPrompt(prompt_token_ids=ids), params, f"{seed}-{concurrency}-{number}"
        ):
            new = len(output.outputs[0].token_ids) - len(times)
            times += [time.perf_counter()] * new
        first.append(times[0] - begin)
        last.append(times[-1] - begin)

    await asyncio.gather(*(one(i) for i in range(concurrency)))
    wall, later = max(last), max(output_tokens - 1, 1)
    start = max(first)
    decoded = sum(
        later * max(b - start, 0.0) / max(b - a, 1e-9) for a, b in zip(first, last, strict=True)
    )
    return {
        "tokens_per_s": concurrency * output_tokens / wall,
        "prompt_tokens_per_s": concurrency * prompt_tokens / start,
        "decode_tokens_per_s": decoded / max(wall - start, 1e-9),
        "ttft_ms": 1e3 * sum(first) / concurrency,
        "tpot_ms": 1e3 * sum(b - a for a, b in zip(first, last, strict=True)) / concurrency / later,
    }


async def serve(model: str, options: dict[str, Any]) -> None:
    """Answer commands until standard input ends."""
    import psutil
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=model,
            dtype=options["dtype"],
            max_model_len=options["context"],
            kv_cache_memory_bytes=options["kv_bytes"],
            max_num_seqs=options["max_sequences"],
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
    )
    _answer({"ready": True, "dtype": options["dtype"]})
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        if command == "memory":
            own = psutil.Process()
            family = [own, *own.children(recursive=True)]
            _answer({"rss_mib": sum(p.memory_info().rss for p in family) / 2**20})
        else:
            _answer(await run_wave(engine, **command))
    engine.shutdown()


def _answer(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    settings = json.loads(sys.argv[2])
    threads = settings["threads"]
    binding = settings["binding"]
    if binding == "all":
        binding = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = binding
    if binding == "nobind":
        os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    asyncio.run(serve(sys.argv[1], settings))
