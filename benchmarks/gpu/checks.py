"""The parts of the GPU check, put together and written down."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common.machine_facts import versions
from benchmarks.common.result_file import write_result
from benchmarks.gpu import accuracy, speed
from benchmarks.gpu.compile_ahead import CompilationError, compile_kernels
from benchmarks.gpu.decoder import LLAMA_1B
from benchmarks.gpu.interpret import InterpreterError, interpret
from benchmarks.gpu.learning import MaskLLMSettings, measure_learning
from benchmarks.gpu.page import compiled_page, gpu_page
from benchmarks.gpu.swap import Replay, measure_swap
from benchmarks.gpu.timing import GraphTimer, captured, first_line
from benchmarks.gpu.tuning import try_launches

COMMAND = "python -m benchmarks.gpu"
_PACKAGES = ("numpy", "torch", "triton")
_CACHES = 4
"""How often the second-level cache must fit into the copies of a layer."""
_AFTER_SPEED_S = 150
"""Seconds that swapping and learning are given after the products."""

Say = Callable[[str], object]


def gpu_found() -> bool:
    """Whether torch sees a CUDA GPU."""
    return torch.cuda.is_available()


def without_gpu(say: Say) -> bool:
    """Compile and interpret the kernels and write the result; False if something is wrong."""
    try:
        rows = compile_kernels()
        interpreted = interpret()
    except (CompilationError, InterpreterError) as error:
        say(f"error: {error}")
        return False
    for kernel in rows:
        say(
            f"{kernel.kernel} {kernel.arch}: {kernel.registers} registers, {kernel.spills} bytes"
            f" spilled, {kernel.shared_bytes} bytes of shared memory"
        )
    path = write_result(
        "gpu-compile",
        compiled_page,
        [row.as_dict() for row in rows],
        command=COMMAND,
        on="no GPU",
        packages=versions(_PACKAGES),
        interpreted=interpreted,
    )
    say(f"wrote {path}")
    wrong = [row for row in interpreted if row["worst"] is None or row["worst"] > 1]
    for row in wrong:
        say(f"error: interpreted {row['n']}x{row['k']} is wrong: {row}")
    return not wrong


class CudaDevice:
    """See `benchmarks.gpu.swap.Device`."""

    def capture(self, work: Replay) -> Replay:
        return captured(work).replay

    def synchronise(self) -> None:
        torch.cuda.synchronize()


def with_gpu(deadline: float, say: Say) -> bool:
    """Run everything and write the result; False if a kernel is wrong or a part failed.

    Args:
        deadline: of `time.monotonic()`.
        say: gets a line per part.
    """
    from engines.vllm_plugin.cuda import CudaBackend, forget_runs

    device = torch.device("cuda")
    timer = GraphTimer()
    with torch.inference_mode():
        cases = (
            accuracy.make_case(n, k, tokens, device)
            for n, k in accuracy.SHAPES
            for tokens in accuracy.TOKEN_COUNTS
        )
        agreement = accuracy.compare(accuracy.gpu_kernels(), cases)
        for row in agreement:
            if not row.agrees:
                say(f"error: {row}")
        forget_runs()
        gpu = _describe_gpu(timer)
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        table = speed.measure_speed(
            speed.SHAPES,
            speed.TOKEN_COUNTS,
            device,
            timer,
            read_at_once=_CACHES * cache,
            deadline=deadline - _AFTER_SPEED_S,
            say=say,
        )
        tried = try_launches(device, timer, deadline=deadline - _AFTER_SPEED_S)
    swap = _part(lambda: measure_swap(LLAMA_1B, device, CudaBackend(), CudaDevice()), say)
    forget_runs()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    learning = _part(
        lambda: measure_learning(LLAMA_1B, device, MaskLLMSettings(), torch.cuda.synchronize), say
    )
    path = write_result(
        "gpu",
        gpu_page,
        table.rows,
        command=COMMAND,
        on=gpu["name"],
        packages=versions(_PACKAGES) | _cuda_versions(),
        gpu=gpu,
        missing=table.missing,
        left_out=table.left_out,
        tried=tried,
        agreement=[row.as_dict() for row in agreement],
        swap=swap,
        learning=learning,
        seconds_left=round(deadline - time.monotonic()),
    )
    say(f"wrote {path}")
    swapped = bool(swap.get("same_memory") and swap.get("follows"))
    return all(row.agrees for row in agreement) and swapped and "error" not in learning


def _part(measure: Callable[[], dict[str, Any]], say: Say) -> dict[str, Any]:
    """What a part found, or why it found nothing."""
    try:
        found = measure()
    except Exception as error:  # a part that fails must not take the others' results along
        found = {"error": first_line(error)}
    say(", ".join(f"{name} {value}" for name, value in found.items()))
    return found


def _describe_gpu(timer: GraphTimer) -> dict[str, Any]:
    device = torch.device("cuda")
    found = torch.cuda.get_device_properties(device)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory_gib": round(found.total_memory / 2**30, 1),
        "processors": found.multi_processor_count,
        "l2_mib": round(found.L2_cache_size / 2**20),
        "copy_gbps": speed.read_bandwidth(device, timer) / 1e9,
    }


def _cuda_versions() -> dict[str, str]:
    """CUDA as torch was built with it, and as nvcc has it where there is one."""
    found = {"cuda": str(torch.version.cuda)}
    if compiler := shutil.which("nvcc"):
        told = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
        release = told.stdout.partition("release ")[2].partition(",")[0]
        found["nvcc"] = release or "unknown"
    return found
