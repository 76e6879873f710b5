"""vLLM as an arm of `twofour bench vllm`: `python -m benchmarks.vllm.worker OPTIONS`.

Whole batches through vLLM's offline API. Speaks `benchmarks.common.worker_protocol`.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from benchmarks.common.waves import Wave
from benchmarks.common.worker_protocol import answer, serve

_VOCABULARY = range(100, 1100)


def main(options: dict[str, Any]) -> None:
    """Answer commands until standard input ends.

    Args:
        options: `model`, `dtype`, `eager` and `max_sequences`.
    """
    begin = time.perf_counter()
    llm = _open(options)
    answer({"start_up_s": round(time.perf_counter() - begin, 1), "platform": _platform()})
    serve({"wave": lambda arguments: _wave(llm, Wave(**arguments)), "memory": _memory})


def _open(options: dict[str, Any]) -> Any:
    from vllm import LLM

    return LLM(
        options["model"],
        enforce_eager=options["eager"],
        dtype=options["dtype"],
        max_model_len=1024,
        max_num_seqs=options["max_sequences"],
        kv_cache_memory_bytes=512 << 20,
        enable_prefix_caching=False,
        disable_log_stats=True,
        seed=0,
    )


def _wave(llm: Any, wave: Wave) -> dict[str, float]:
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0, max_tokens=wave.output_tokens, ignore_eos=True, detokenize=False
    )
    prompts: list[Any] = [
        {"prompt_token_ids": list(prompt)} for prompt in wave.prompts(_VOCABULARY)
    ]
    begin = time.perf_counter()
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    seconds = time.perf_counter() - begin
    made = sum(len(output.outputs[0].token_ids) for output in outputs)
    if made != wave.concurrency * wave.output_tokens:
        raise RuntimeError(f"{made} tokens instead of {wave.concurrency * wave.output_tokens}")
    return {"wall_s": seconds}


def _memory(_: None) -> dict[str, float]:
    """VmRSS of vLLM's worker, the process that holds the weights."""
    import psutil

    sizes = [p.memory_info().rss for p in psutil.Process().children(recursive=True)]
    return {"rss_mib": max(sizes) / 2**20}


def _platform() -> str:
    from vllm.platforms import current_platform

    return type(current_platform).__name__


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
