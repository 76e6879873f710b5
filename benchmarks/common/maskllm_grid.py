"""The grid of MaskLLM's throughput table (arXiv 2409.17481), and the paper's figures."""

from __future__ import annotations

Cell = tuple[int, int]
"""Prompt and generated tokens."""

GRID: tuple[Cell, ...] = ((128, 128), (128, 2048), (2048, 128), (2048, 2048))

PAPER: dict[str, tuple[tuple[float, float], ...]] = {
    "Llama-2 7B": ((61.74, 86.92), (59.18, 82.11), (57.55, 78.81), (55.40, 75.10)),
    "Llama-2 13B": ((32.97, 51.64), (31.81, 49.00), (31.14, 47.19), (30.09, 45.06)),
}
"""Model -> tokens per second, dense and 2:4, of every cell: an A6000, TensorRT-LLM, batch 1."""

_LARGEST_SCALE = 64


def scaled_grid(scale: int) -> tuple[Cell, ...]:
    """The grid with all lengths divided by `scale`, for models with few positions.

    Raises:
        ValueError: the shortest prompt would have fewer than two tokens.
    """
    if not 1 <= scale <= _LARGEST_SCALE:
        raise ValueError(f"maskllm/{scale}: lengths can be divided by 1 to {_LARGEST_SCALE}")
    return tuple((prompt // scale, output // scale) for prompt, output in GRID)
