"""Grids of int8 and int4 values, and rounding every weight of a dense matrix to the nearest one.

    w = scale * value          int4: value = 8 level + minimum

The grid of a block comes from all of its weights, whichever a mask keeps: so a weight has the same
value under every mask. `maskgen.recovery.quantiser` fits the same grids in torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.errors import EngineDirectoryError
from engines.native.layout import Layout, dense_layout
from engines.native.lowbit import MINIMA, STEP, QuantisedWeights
from engines.quantisation.options import Values

Floats = npt.NDArray[np.float32]

_LEAST_SCALE = np.float32(2.0**-24)  # of fp16
_ROWS = 256  # rounded at a time, so that what is computed on the way stays small


@dataclass(frozen=True, slots=True)
class Grid:
    """How weights are quantised.

    Attributes:
        values: `int8` or `int4`.
        block: inputs of a row that share a scale.
        minima: int4 blocks have a minimum of their own.
    """

    values: Values
    block: int
    minima: bool = False

    @property
    def dense_layout(self) -> Layout:
        """Layout of a layer that keeps all weights."""
        return dense_layout(self.values)


def round_to_nearest(weights: npt.NDArray[Any], grid: Grid) -> QuantisedWeights:
    """Round every weight of a matrix to the nearest value of its block's grid.

    Args:
        weights: (n, k) bf16, f16 or f32.
        grid: what kind.

    Raises:
        EngineDirectoryError: a weight is not finite, or beyond what an fp16 scale reaches.
    """
    n, k = weights.shape
    blocks = -(-k // grid.block)
    values = np.empty((n, k), np.int8)
    scales = np.empty((n, blocks), np.float16)
    minima = np.empty((n, blocks), np.int8) if grid.minima else None
    for start in range(0, n, _ROWS):
        rows = slice(start, start + _ROWS)
        part = _blocks(weights[rows].astype(np.float32), grid.block)
        if not np.isfinite(part).all():
            raise EngineDirectoryError("a weight is not a finite number: it cannot be quantised")
        rounded, scale, minimum = _round(part, grid)
        if not np.isfinite(scale).all():
            raise EngineDirectoryError(
                f"a weight of {np.abs(part).max():g} is too large for {grid.values} values"
            )
        values[rows] = rounded.reshape(len(rounded), -1)[:, :k]
        scales[rows] = scale
        if minima is not None:
            minima[rows] = minimum
    return QuantisedWeights(values, scales, grid.block, minima)


def _round(
    blocks: Floats, grid: Grid
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float16], npt.NDArray[np.int8]]:
    """(rows, blocks, block) weights -> values or levels, scales and minima."""
    if grid.values == "int8":
        scale = _fp16(np.abs(blocks).max(axis=2) / 127)
        values = np.rint(blocks / scale.astype(np.float32)[..., None])
        return np.clip(values, -127, 127).astype(np.int8), scale, np.zeros_like(scale, np.int8)
    if not grid.minima:
        scale = _fp16(np.abs(blocks).max(axis=2) / (7 * STEP))
        levels = np.rint(blocks / (scale.astype(np.float32)[..., None] * STEP)) + 8
        minimum = np.full(scale.shape, -8 * STEP, np.int8)
        return np.clip(levels, 0, 15).astype(np.int8), scale, minimum
    # Zero is always within reach, so that a minimum never exceeds what an int8 can say. What pads
    # a row's last block is zero as well.
    low, high = blocks.min(axis=2).clip(max=0), blocks.max(axis=2).clip(min=0)
    scale = _fp16((high - low) / (15 * STEP))
    wide = scale.astype(np.float32)
    minimum = np.clip(np.rint(low / wide), *MINIMA).astype(np.int8)
    levels = np.rint((blocks / wide[..., None] - minimum[..., None]) / STEP)
    return np.clip(levels, 0, 15).astype(np.int8), scale, minimum


def _blocks(weights: Floats, block: int) -> Floats:
    """(rows, blocks, block), the last block of a row filled up with zeros."""
    padded = np.pad(weights, ((0, 0), (0, -weights.shape[1] % block)))
    return padded.reshape(len(weights), -1, block)


def _fp16(scale: Floats) -> npt.NDArray[np.float16]:
    """The nearest fp16, never 0; infinite where there is none."""
    with np.errstate(over="ignore"):
        return np.maximum(scale, _LEAST_SCALE).astype(np.float16)
