"""Where the time of one decode step goes, against the bytes that it has to move."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engines.cpu.model import PAGE_POSITIONS, CpuModel
from engines.cpu.opening import open_cpu_directory
from engines.cpu.value_form import forms_of
from engines.native import kernels, layout
from engines.native._native import Limits, Step

KEY = ("arm", "context")
"""What names a row."""

READ_BYTES = 256 << 20


def split_of(
    directory: Path, *, threads: int, context: int = 128, steps: int = 60
) -> dict[str, Any]:
    """Median times of a batch-1 step at `context` tokens, and of its parts, by leaving them out.

    head: a step with logits less one without. attention: a step at `context` less one at the first
    position. weights: bytes of the linear layers at read bandwidth. overhead: the rest.
    """
    opened = open_cpu_directory(directory)
    pages = -(-(context + 1) // PAGE_POSITIONS)
    limits = Limits(512, 64, context + 1, pages, threads)
    forms = forms_of(opened.manifest.quantisation)
    model = CpuModel(opened.weights, opened.config, limits, forms)
    table = np.arange(pages, dtype=np.int32)[None]
    _fill(model, table, context)

    def step(position: int, rows: int) -> Callable[[], None]:
        arrays = Step(
            tokens=_ints(7),
            token_begin=_ints(0, 1),
            start=_ints(position),
            pages=table,
            masks=_ints(model.base_mask),
            logit_rows=_ints(*([0] * rows)),
        )

        def run() -> None:
            model.step(arrays)

        return run

    block = layout.empty(READ_BYTES)
    block[:] = 1
    # In turns, so that what else the machine does hits all alike.
    parts: dict[str, Callable[[], None]] = {
        "step": step(context, 1),
        "no_head": step(context, 0),
        "no_context": step(0, 1),
        "read": lambda: kernels.read(block, threads=threads),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(steps):
        for name, run in parts.items():
            begin = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begin)
    median = {name: statistics.median(values) for name, values in times.items()}
    best = {name: min(values) for name, values in times.items()}
    bandwidth = READ_BYTES / median["read"]
    kv_bytes = context * model.native.page_bytes / PAGE_POSITIONS
    moved = model.weight_bytes + kv_bytes
    weights_ms = 1e3 * (model.weight_bytes - model.head.data.nbytes) / bandwidth
    step_ms = 1e3 * median["step"]
    head_ms = 1e3 * (median["step"] - median["no_head"])
    attention_ms = 1e3 * (median["step"] - median["no_context"])
    return {
        "context": context,
        "threads": threads,
        "step_ms": step_ms,
        "best_step_ms": 1e3 * best["step"],
        "moved_mib": moved / 2**20,
        "read_gbps": bandwidth / 1e9,
        "best_read_gbps": READ_BYTES / best["read"] / 1e9,
        "ideal_ms": 1e3 * moved / bandwidth,
        "ratio": step_ms / (1e3 * moved / bandwidth),
        "best_ratio": best["step"] / (moved / (READ_BYTES / best["read"])),
        "weights_ms": weights_ms,
        "head_ms": head_ms,
        "attention_ms": attention_ms,
        "overhead_ms": step_ms - weights_ms - head_ms - attention_ms,
    }


def _fill(model: CpuModel, table: np.ndarray[Any, np.dtype[np.int32]], context: int) -> None:
    """Give the cache `context` positions."""
    for start in range(0, context, 256):
        count = min(256, context - start)
        model.step(
            Step(
                tokens=np.arange(count, dtype=np.int32) % 100,
                token_begin=_ints(0, count),
                start=_ints(start),
                pages=table,
                masks=_ints(model.base_mask),
                logit_rows=_ints(),
            )
        )


def _ints(*values: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.array(values, np.int32)
