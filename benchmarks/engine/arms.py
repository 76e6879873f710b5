"""How each arm of `twofour bench engine` is started; all speak `engine_worker`'s protocol."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.engine.speed import Plan


def engine_command(directory: Path, plan: Plan) -> list[str]:
    """One of our own arms: an engine directory of target `cpu`."""
    options = {
        "kv_bytes": plan.kv_mib << 20,
        "threads": plan.threads,
        "max_sequences": max(plan.concurrencies),
        "prefix_cache": False,
    }
    return _module("benchmarks.engine.worker", directory, options)


def vllm_command(python: Path, model: Path, plan: Plan, *, dtype: str, binding: str) -> list[str]:
    """vLLM from an environment of its own.

    Args:
        python: of that environment.
        model: directory of the dense model.
        plan: what will be measured.
        dtype: `bfloat16` or `float32`; the latter is faster where bf16 has no instructions.
        binding: VLLM_CPU_OMP_THREADS_BIND; `nobind` leaves threads where the system puts them,
            `auto` keeps a processor for vLLM's other processes.
    """
    script = Path(__file__).with_name("vllm_worker.py")
    options = {
        "kv_bytes": plan.kv_mib << 20,
        "threads": plan.threads,
        "max_sequences": max(plan.concurrencies),
        "context": 1 + max(sum(pair) for pair in plan.lengths),
        "dtype": dtype,
        "binding": binding,
    }
    # -P: nothing of the folder that the script lies in is in the way.
    return [str(python), "-P", str(script), str(model.resolve()), json.dumps(options)]


def llama_command(batched_bench: Path, gguf: Path, plan: Plan) -> list[str]:
    """llama.cpp: its own llama-batched-bench, started anew for every wave."""
    options = {"program": str(batched_bench.resolve()), "threads": plan.threads}
    return _module("benchmarks.engine.llama_worker", gguf, options)


def _module(name: str, subject: Path, options: dict[str, Any]) -> list[str]:
    return [sys.executable, "-m", name, str(subject.resolve()), json.dumps(options)]
