"""vLLM as an arm of `twofour bench engine`, run by the Python of vLLM's own environment.

That environment need not have twofour, so this imports nothing of ours but
`benchmarks.common.waves` and `.worker_protocol` (see `benchmarks.common.foreign_python`).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

from benchmarks.common.waves import Wave, run_wave
from benchmarks.common.worker_protocol import answer, serve_async

_VOCABULARY = range(10, 30_000)


def main(model: str, options: str) -> None:
    """Answer commands until standard input ends.

    Args:
        model: directory of the model.
        options: JSON object with `kv_bytes`, `threads`, `max_sequences`, `context`, `dtype` and
            `binding`.
    """
    settings = json.loads(options)
    threads, binding = settings["threads"], settings["binding"]
    if binding == "all":
        binding = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
    # Before vLLM is imported, which reads them then.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = binding
    if binding == "nobind":
        os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    asyncio.run(_serve(model, settings))


async def _serve(model: str, settings: dict[str, Any]) -> None:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=model,
            dtype=settings["dtype"],
            max_model_len=settings["context"],
            kv_cache_memory_bytes=settings["kv_bytes"],
            max_num_seqs=settings["max_sequences"],
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
    )
    answer({"dtype": settings["dtype"]})

    async def wave(arguments: dict[str, Any]) -> dict[str, float]:
        return await _wave(engine, Wave(**arguments))

    await serve_async({"wave": wave, "memory": _memory})
    engine.shutdown()


async def _wave(engine: Any, wave: Wave) -> dict[str, float]:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    sampling = SamplingParams(temperature=0.0, max_tokens=wave.output_tokens, ignore_eos=True)

    async def generate(number: int, prompt: tuple[int, ...]) -> AsyncIterator[int]:
        done = 0
        key = f"{wave.seed}-{wave.concurrency}-{number}"
        async for output in engine.generate(
            TokensPrompt(prompt_token_ids=list(prompt)), sampling, key
        ):
            made = len(output.outputs[0].token_ids)
            yield made - done
            done = made

    return await run_wave(wave, _VOCABULARY, generate)


async def _memory(_: None) -> dict[str, float]:
    """Memory that vLLM's processes have resident together."""
    import psutil

    own = psutil.Process()
    family = [own, *own.children(recursive=True)]
    return {"rss_mib": sum(process.memory_info().rss for process in family) / 2**20}
