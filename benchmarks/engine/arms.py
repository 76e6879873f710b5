"""How each arm of `twofour bench engine speed` is started."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.foreign_python import foreign_command
from benchmarks.engine.llama_worker import IK_PROGRAM, PROGRAM
from benchmarks.engine.speed import SpeedPlan

VLLM = ("vllm-dense", "vllm-zentorch")
LLAMA = "llama.cpp-"
IK = "ik-"
_PROGRAMS = {LLAMA: PROGRAM, IK: IK_PROGRAM}


def engine_command(directory: Path, plan: SpeedPlan) -> list[str]:
    """One of our own arms: an engine directory of target `cpu`."""
    return _module("benchmarks.engine.worker", directory, json.dumps(engine_options(plan)))


def engine_options(plan: SpeedPlan) -> dict[str, int | bool]:
    """Options of the CPU engine in such an arm."""
    return {
        "kv_bytes": plan.kv_mib << 20,
        "threads": plan.threads,
        "max_sequences": max(plan.concurrencies),
        "prefix_cache": False,
    }


def peer_commands(
    peers: Sequence[str], model: Path | None, plan: SpeedPlan, *, dtype: str, binding: str
) -> dict[str, list[str]]:
    """The arms of other engines.

    Args:
        peers: `vllm-dense=PYTHON` and `vllm-zentorch=PYTHON` (of an environment with vLLM, and with
            zentorch besides), `llama.cpp-TYPE=FILE.gguf`, `ik-TYPE=FILE.gguf` (ik_llama.cpp).
        model: directory of the dense model, for vLLM.
        plan: what will be measured.
        dtype: vLLM's `bfloat16` or `float32`; the latter is faster where bf16 has no instructions.
        binding: vLLM's VLLM_CPU_OMP_THREADS_BIND; `nobind` leaves threads where the system puts
            them, `auto` keeps a processor for vLLM's other processes.

    Raises:
        ValueError: a peer is none of these, or lacks what it needs.
    """
    commands = {}
    for peer in peers:
        arm, _, path = peer.partition("=")
        program = next((p for prefix, p in _PROGRAMS.items() if arm.startswith(prefix)), None)
        if not Path(path).is_file() or not (arm in VLLM or program):
            raise ValueError(
                f"--peer {peer!r}: give {'=PYTHON, '.join(VLLM)}=PYTHON, {IK}TYPE=FILE.gguf or"
                f" {LLAMA}TYPE=FILE.gguf, and a file that exists"
            )
        if arm in VLLM:
            if model is None:
                raise ValueError(f"--peer {arm} needs --model: vLLM runs the dense model itself")
            commands[arm] = _vllm_command(Path(path), model, plan, dtype, binding)
        elif program is None or shutil.which(program) is None:
            raise ValueError(f"--peer {arm} needs llama.cpp's {program} on the PATH")
        else:
            worker = _module("benchmarks.engine.llama_worker", Path(path), str(plan.threads))
            commands[arm] = [*worker, program]
    return commands


def _vllm_command(
    python: Path, model: Path, plan: SpeedPlan, dtype: str, binding: str
) -> list[str]:
    options = {
        "kv_bytes": plan.kv_mib << 20,
        "threads": plan.threads,
        "max_sequences": max(plan.concurrencies),
        "context": 1 + max(sum(pair) for pair in plan.lengths),
        "dtype": dtype,
        "binding": binding,
    }
    module = "benchmarks.engine.vllm_worker"
    return foreign_command(python, module, str(model.resolve()), json.dumps(options))


def _module(name: str, subject: Path, options: str) -> list[str]:
    return [sys.executable, "-m", name, str(subject.resolve()), options]
