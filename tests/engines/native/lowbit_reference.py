"""What products of int8 and int4 weights are, in numpy: every bit of the result."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engines.native.layout import Layout
from engines.native.lowbit import QuantisedWeights, block_count, int8_values, kept_words

LAYOUTS = tuple(layout for layout in Layout if layout >= Layout.DENSE_INT8)
INT4 = (Layout.DENSE_INT4, Layout.SPARSE24_INT4, Layout.BITMAP32_INT4)
DENSE = (Layout.DENSE_INT8, Layout.DENSE_INT4)
PAIRS = (Layout.SPARSE24_INT8, Layout.SPARSE24_INT4)


def quantised_activations(
    x: npt.NDArray[np.float32], block: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """(tokens, k) integers, -127 to 127, and (tokens, blocks) float32 scales."""
    tokens, k = x.shape
    integers = np.zeros((tokens, k), np.int32)
    scales = np.zeros((tokens, block_count(k, block)), np.float32)
    for b in range(scales.shape[1]):
        part = x[:, b * block : (b + 1) * block]
        for t in range(tokens):
            largest = np.abs(part[t]).max()
            if not np.isfinite(largest):
                scales[t, b] = np.nan
            elif largest >= np.float32(2.0**-100):
                inverse = np.float32(127) / largest
                scales[t, b] = largest / np.float32(127)
                integers[t, b * block : (b + 1) * block] = np.rint(part[t] * inverse)
    return integers, scales


def product(
    layout: Layout, weights: QuantisedWeights, x: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """(tokens, n): blocks by rising input, integers within one, floats rounded each time."""
    values = int8_values(layout, weights).astype(np.int32)
    a, s = quantised_activations(x, weights.block)
    y = np.zeros((len(x), len(values)), np.float32)
    for b in range(s.shape[1]):
        inputs = slice(b * weights.block, (b + 1) * weights.block)
        sums = a[:, inputs] @ values[:, inputs].T
        scale = weights.scales[:, b].astype(np.float32) * s[:, b, None]
        y = y + sums.astype(np.float32) * scale
    return y


def random_keep(rng: np.random.Generator, n: int, k: int, m: int) -> npt.NDArray[np.bool_]:
    """Half of every m inputs, and half of what is beyond the last m."""
    scores = rng.random((n, k))
    keep = np.zeros((n, k), np.bool_)
    for first in range(0, k, m):
        part = scores[:, first : first + m]
        best = np.argsort(part, axis=1)[:, : part.shape[1] // 2]
        np.put_along_axis(keep[:, first : first + m], best, True, axis=1)
    return keep


def random_weights(
    layout: Layout, n: int, k: int, block: int, *, minima: bool = False, m: int = 32, seed: int = 0
) -> QuantisedWeights:
    """Values over the whole range, scales of very different size, and m/2 of m kept."""
    rng = np.random.default_rng(seed)
    int4 = layout in INT4
    values = rng.integers(0, 16, (n, k)) if int4 else rng.integers(-127, 128, (n, k))
    shape = (n, block_count(k, block))
    scales = np.exp2(rng.uniform(-20, 4, shape)).astype(np.float16)
    kept = None
    if layout not in DENSE:
        kept = kept_words(random_keep(rng, n, k, 4 if layout in PAIRS else m))
    return QuantisedWeights(
        values.astype(np.int8),
        scales,
        block,
        rng.integers(-127, 8, shape, dtype=np.int8) if minima and int4 else None,
        kept,
    )
