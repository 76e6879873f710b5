"""llama.cpp as an arm of `twofour bench engine`.

Started by `python -m benchmarks.engine.llama_worker GGUF OPTIONS`.

Speaks the protocol of `benchmarks.engine.worker`. A wave is one run of llama.cpp's own
`llama-batched-bench`, which reads all prompts, then generates for all sequences together; loading
is not counted. Its two times are all it tells, so the first token is taken to come when all prompts
are read.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_wave(
    gguf: Path,
    program: str,
    threads: int,
    *,
    prompt_tokens: int,
    output_tokens: int,
    concurrency: int,
) -> dict[str, float]:
    """One run of llama-batched-bench; figures of the wave.

    Raises:
        RuntimeError: it failed, or measured something else than was asked for.
    """
    context = concurrency * (-(-(prompt_tokens + output_tokens) // 256) * 256)
    command = [program, "-m", str(gguf), "-t", str(threads), "-c", str(context)]
    command += ["-npp", str(prompt_tokens), "-ntg", str(output_tokens), "-npl", str(concurrency)]
    command += ["--output-format", "jsonl"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(found) != 1:
        raise RuntimeError(f"{program} failed ({done.returncode}): {done.stderr[-500:]}")
    result = json.loads(found[0])
    asked = (prompt_tokens, output_tokens, concurrency, threads)
    if tuple(result[name] for name in ("pp", "tg", "pl", "n_threads")) != asked:
        raise RuntimeError(f"{program} measured {result}, asked for {asked}")
    prompt, decode = result["t_pp"], result["t_tg"]
    return {
        "tokens_per_s": concurrency * output_tokens / (prompt + decode),
        "prompt_tokens_per_s": concurrency * prompt_tokens / prompt,
        "decode_tokens_per_s": concurrency * output_tokens / decode,
        "ttft_ms": 1e3 * prompt,
        "tpot_ms": 1e3 * decode / output_tokens,
    }


def main(gguf: Path, options: dict[str, Any]) -> None:
    """Answer commands until standard input ends."""
    _answer({"ready": True, "weights_mib": round(gguf.stat().st_size / 2**20, 1)})
    for line in sys.stdin:
        command = json.loads(line)
        if command == "memory":
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            _answer({"rss_mib": peak / 1024})
        else:
            command.pop("seed")
            _answer(run_wave(gguf, options["program"], options["threads"], **command))


def _answer(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
