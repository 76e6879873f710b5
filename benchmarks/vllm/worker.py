"""One arm of `benchmarks.vllm.speed`: vLLM on one model, in a process of its own that takes turns.

Reads a job as its argument, says when vLLM is ready, and then answers each line of standard input,
a batch size, with the seconds that this batch took.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

ANSWER = "twofour-bench "
"""What the lines that the driver reads begin with; vLLM writes others."""


def main() -> None:
    """Serve the job in `sys.argv[1]` until standard input ends."""
    job = json.loads(sys.argv[1])
    begin = time.perf_counter()
    llm = _open(job)
    ready = {"start_up_s": round(time.perf_counter() - begin, 1), "platform": _platform()}
    _answer(ready)
    for line in sys.stdin:
        seconds = _generate(llm, int(line), job["prompt_tokens"], job["output_tokens"])
        _answer({"seconds": seconds, "worker_rss_mib": _worker_rss_mib()})


def _open(job: dict[str, Any]) -> Any:
    from vllm import LLM

    return LLM(
        job["model"],
        enforce_eager=job["mode"] == "eager",
        dtype=job["dtype"],
        max_model_len=1024,
        max_num_seqs=max(job["batches"]),
        kv_cache_memory_bytes=512 << 20,
        enable_prefix_caching=False,
        disable_log_stats=True,
        seed=0,
    )


def _generate(llm: Any, batch: int, prompt_tokens: int, output_tokens: int) -> float:
    """Seconds for `batch` greedy requests of so many tokens."""
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0, max_tokens=output_tokens, ignore_eos=True, detokenize=False
    )
    prompts: list[Any] = [
        {"prompt_token_ids": [(7 * i + 31 * j) % 1000 + 100 for j in range(prompt_tokens)]}
        for i in range(batch)
    ]
    begin = time.perf_counter()
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    seconds = time.perf_counter() - begin
    made = sum(len(output.outputs[0].token_ids) for output in outputs)
    if made != batch * output_tokens:
        raise RuntimeError(f"{made} tokens instead of {batch * output_tokens}")
    return seconds


def _worker_rss_mib() -> float:
    """VmRSS of vLLM's worker, the process that holds the weights."""
    import psutil

    sizes = [p.memory_info().rss for p in psutil.Process().children(recursive=True)]
    return round(max(sizes) / 2**20, 1)


def _platform() -> str:
    from vllm.platforms import current_platform

    return type(current_platform).__name__


def _answer(value: dict[str, Any]) -> None:
    print(ANSWER + json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
