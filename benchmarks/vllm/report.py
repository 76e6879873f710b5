"""What the rows of `twofour bench vllm` say, and what a call of the operator costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

DENSE = ("own-dense", "dense", "dense-fp32", "zentorch")


def speed_summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per batch, each arm at its best mode and binding.

    `usefulness` is the best sparse arm over the best dense one of any kind, `sparsity` is sparse
    over the same kernels' dense arm; a ratio is missing where an arm is.
    """
    found = []
    for batch in sorted({row["batch"] for row in rows}):
        best: dict[str, float] = {}
        for row in rows:
            if row["batch"] == batch:
                best[row["arm"]] = max(best.get(row["arm"], 0.0), row["tokens_per_s"])
        entry: dict[str, Any] = {"batch": batch, "best_tokens_per_s": best}
        dense = [best[arm] for arm in DENSE if arm in best]
        if "sparse" in best and dense:
            entry["usefulness"] = round(best["sparse"] / max(dense), 3)
        if "sparse" in best and "own-dense" in best:
            entry["sparsity"] = round(best["sparse"] / best["own-dense"], 3)
        found.append(entry)
    return found


def operator_call_us() -> dict[str, float]:
    """Microseconds of one call with next to no work, for the operator and for F.linear."""
    import torch

    from engines.native.torch_ops import linear, pack_tensor

    weight = torch.randn(16, 32).bfloat16()
    packed = pack_tensor(weight, torch.zeros(16, 8, dtype=torch.uint8))
    x = torch.randn(1, 32).bfloat16()
    calls: dict[str, Callable[[], object]] = {
        "twofour::linear": lambda: linear(x, packed, 1, 16, None),
        "F.linear": lambda: torch.nn.functional.linear(x, weight),
    }
    found = {}
    for name, call in calls.items():
        for _ in range(500):
            call()
        begin = time.perf_counter()
        for _ in range(5000):
            call()
        found[name] = round((time.perf_counter() - begin) / 5000 * 1e6, 2)
    return found
