"""What sampling masks costs beside the matrix products of the same step.

For every linear of a model: the three products of a training step (forward and both gradients), and
the masked weight with its gradient to the logits, by implementation.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from types import ModuleType
from typing import Any

import torch

from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.learning.native import native_module
from maskgen.learning.noise import NoiseKey
from maskgen.learning.relaxation import (
    EntropicTopN,
    GumbelPlacements,
    Relaxation,
    SequentialTopN,
    Softness,
)
from maskgen.torch_model import TORCH_DTYPES, resolve_dtype

Shape = tuple[int, int]
ENTROPIC = (TWO_FOUR, Pattern(16, 32))
"""Patterns of RoI with the entropic top n."""


def measure_cost(
    shapes: Iterable[Shape], tokens: int, repeats: int, with_torch: bool, dtype: str = "auto"
) -> list[dict[str, Any]]:
    """Seconds of one step over all layers, by part.

    Args:
        shapes: (outputs, inputs) of every masked linear.
        tokens: tokens in a step.
        repeats: of each measurement; the fastest counts.
        with_torch: also measure the torch functions, which take minutes on a large model.
        dtype: of weights and activations (`maskgen.torch_model.resolve_dtype`).

    Returns:
        Rows with `part`, `implementation`, `threads`, `tokens`, `dtype`, `seconds`.
    """
    counts = Counter(shapes)
    dtype = resolve_dtype(dtype, "cpu")
    cast = TORCH_DTYPES[dtype]
    arms: dict[tuple[str, str], Callable[[Shape], Callable[[], None]]] = {
        ("products", "torch"): partial(_products, tokens, cast)
    }
    for name, native in _implementations(with_torch):
        arms["maskllm", name] = partial(_masks, cast, GumbelPlacements(native), 100.0, 4.0)
        arms["roi", name] = partial(_masks, cast, SequentialTopN(native), 0.5, 0.5)
        for pattern in ENTROPIC:
            relaxation = EntropicTopN(native, pattern)
            arms[f"roi entropic {pattern}", name] = partial(_masks, cast, relaxation, 0.5, 0.5)
    rows = []
    for (part, implementation), make in arms.items():
        seconds = sum(_fastest(make(shape), repeats) * n for shape, n in counts.items())
        rows.append(
            {
                "part": part,
                "implementation": implementation,
                "threads": torch.get_num_threads(),
                "tokens": tokens,
                "dtype": dtype,
                "seconds": round(seconds, 4),
            }
        )
    return rows


def _implementations(with_torch: bool) -> list[tuple[str, ModuleType | None]]:
    native = native_module()
    found: list[tuple[str, ModuleType | None]] = [(f"native-{native.isa()}", native)]
    return [*found, ("torch", None)] if with_torch else found


def _products(tokens: int, dtype: torch.dtype, shape: Shape) -> Callable[[], None]:
    n, k = shape
    x = torch.randn(tokens, k).to(dtype)
    weight = torch.randn(n, k).to(dtype)
    gradient = torch.randn(tokens, n).to(dtype)

    def run() -> None:
        torch.nn.functional.linear(x, weight)
        gradient @ weight
        gradient.T @ x

    return run


def _masks(
    dtype: torch.dtype, relaxation: Relaxation[Any], scale: float, tau: float, shape: Shape
) -> Callable[[], None]:
    n, k = shape
    weight = torch.randn(n, k).to(dtype)
    logits = torch.randn(n, relaxation.planes, k // relaxation.pattern.m) * 0.01
    gradient = torch.randn(n, k).to(dtype)
    out = torch.zeros_like(logits)
    at, key = Softness(scale, tau, 1e-5), NoiseKey(0, 0, 0, 0)

    def run() -> None:
        relaxation.masked_weight(weight, logits, at, key)
        relaxation.add_gradient(weight, logits, gradient, at, key, out)

    return run


def _fastest(run: Callable[[], None], repeats: int) -> float:
    run()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best
