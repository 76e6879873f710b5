"""llama.cpp as an arm: `python -m benchmarks.engine.llama_worker GGUF THREADS [PROGRAM]`.

A wave is one run of llama.cpp's own `llama-batched-bench` (or of ik_llama.cpp's, which repacks
weights for it), which reads all prompts, then generates
for all sequences together; loading is not counted. Its two times are all it tells, so the first
token is taken to come when all prompts are read. Speaks `benchmarks.common.worker_protocol`.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common.waves import Wave
from benchmarks.common.worker_protocol import answer, serve

PROGRAM = "llama-batched-bench"
IK_PROGRAM = "ik-llama-batched-bench"
"""ik_llama.cpp's program of the same name, under a name of its own."""
# PP, TG, B, N_KV, T_PP s, S_PP t/s, T_TG s, and three more.
_ROW = re.compile(
    r"\| *(?P<pp>\d+) \| *(?P<tg>\d+) \| *(?P<pl>\d+) \| *\d+ \| *(?P<t_pp>[\d.]+) \| *[\d.]+ \|"
    r" *(?P<t_tg>[\d.]+) \|.*"
)


def run_batched_bench(
    gguf: Path, threads: int, wave: Wave, program: str = PROGRAM
) -> dict[str, float]:
    """One run of the program; the figures of the wave.

    Raises:
        RuntimeError: it failed, or measured something else than was asked for.
    """
    context = wave.concurrency * (-(-(wave.prompt_tokens + wave.output_tokens) // 256) * 256)
    asked = (wave.prompt_tokens, wave.output_tokens, wave.concurrency)
    command = [program, "-m", str(gguf.resolve()), "-t", str(threads), "-c", str(context)]
    for flag, value in zip(("-npp", "-ntg", "-npl"), asked, strict=True):
        command += [flag, str(value)]
    command += _ik_flags(wave) if program == IK_PROGRAM else ["--output-format", "jsonl"]
    with tempfile.TemporaryDirectory() as folder:  # ik_llama.cpp leaves a log where it runs
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    result = (_table_row if program == IK_PROGRAM else _json_row)(done)
    if done.returncode or result is None:
        raise RuntimeError(f"{program} failed ({done.returncode}): {done.stderr[-500:]}")
    if tuple(result[name] for name in ("pp", "tg", "pl")) != asked:
        raise RuntimeError(f"{program} measured {result}, asked for {asked}")
    if result.get("n_threads", threads) != threads:
        raise RuntimeError(f"{program} ran {result['n_threads']} threads, asked for {threads}")
    reading, decoding = result["t_pp"], result["t_tg"]
    # All of a sequence's tokens are generated in `t_tg`, so none is set apart as the first.
    tokens = wave.concurrency * wave.output_tokens
    return {
        "wall_s": reading + decoding,
        "tokens_per_s": tokens / (reading + decoding),
        "prompt_tokens_per_s": wave.concurrency * wave.prompt_tokens / reading,
        "decode_tokens_per_s": tokens / decoding,
        "ttft_ms": 1e3 * reading,
        "tpot_ms": 1e3 * decoding / wave.output_tokens,
    }


def _ik_flags(wave: Wave) -> list[str]:
    """Repacked weights; 0.1.5 aborts in its flash attention at several sequences, whose speed at
    one is that of its other attention."""
    return ["-rtr", *(["-fa", "off"] if wave.concurrency > 1 else [])]


def _json_row(done: subprocess.CompletedProcess[str]) -> dict[str, float] | None:
    """What llama.cpp's program printed; None if that is not one row."""
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(found[0]) if len(found) == 1 else None


def _table_row(done: subprocess.CompletedProcess[str]) -> dict[str, float] | None:
    """The same of ik_llama.cpp's, which knows no output format but a table among its messages."""
    found = [match for line in done.stderr.splitlines() if (match := _ROW.fullmatch(line.strip()))]
    if len(found) != 1:
        return None
    sizes = {name: int(found[0][name]) for name in ("pp", "tg", "pl")}
    return sizes | {name: float(found[0][name]) for name in ("t_pp", "t_tg")}


def _memory(_: None) -> dict[str, float]:
    """The most that a run of the program has taken."""
    return {"rss_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}


def main(gguf: Path, threads: int, program: str = PROGRAM) -> None:
    """Answer commands until standard input ends."""
    answer({"weights_mib": round(gguf.stat().st_size / 2**20, 1)})

    def wave(arguments: dict[str, Any]) -> dict[str, float]:
        return run_batched_bench(gguf, threads, Wave(**arguments), program)

    serve({"wave": wave, "memory": _memory})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
