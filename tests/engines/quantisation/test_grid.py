"""Grids of dense blocks, and rounding to the nearest of their values."""

from __future__ import annotations

import numpy as np
import pytest

from engines.errors import EngineDirectoryError
from engines.native.lowbit import dequantise, int8_values, pack
from engines.quantisation.grid import Grid, round_to_nearest

GRIDS = [
    Grid(values, block, minima)
    for values, minima in (("int8", False), ("int4", False), ("int4", True))
    for block in (32, 128)
]


def some_weights() -> np.ndarray:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((300, 144)) * np.logspace(-3, 2, 300)[:, None]
    weights[7] = 0
    weights[8] = np.abs(weights[8])
    weights[9] = -np.abs(weights[9])
    return weights.astype(np.float32)


@pytest.mark.parametrize("grid", GRIDS)
def test_every_weight_gets_the_nearest_value_of_its_blocks_grid(grid: Grid) -> None:
    weights = some_weights()
    found = round_to_nearest(weights, grid)
    pack(grid.dense_layout, found)  # which refuses what is no value, scale or minimum
    step = 1 if grid.values == "int8" else 8
    scales = np.repeat(found.scales.astype(np.float32), grid.block, axis=1)[:, :144] * step
    away = np.abs(dequantise(grid.dense_layout, found) - weights)
    # Half a step; what a rounded scale does at the ends of the grid; a minimum in eighths of steps.
    assert (away <= scales * (0.501 + 0.0005 * 127 / step + 0.0625 * grid.minima) + 1e-7).all()
    assert not dequantise(grid.dense_layout, found)[7].any()


def test_weights_on_a_grid_of_sixteen_levels_and_a_minimum_stay_where_they_are() -> None:
    rng = np.random.default_rng(1)
    levels = rng.integers(0, 16, (64, 4, 32))
    levels[..., 0], levels[..., 1] = 0, 15
    steps = rng.uniform(0.01, 0.02, (64, 4, 1)).astype(np.float16)
    weights = (steps * (levels - rng.uniform(6, 9, (64, 4, 1)))).reshape(64, 128)
    found = round_to_nearest(weights, Grid("int4", 32, minima=True))
    np.testing.assert_array_equal(found.values.reshape(64, 4, 32), levels)
    away = dequantise(Grid("int4", 32).dense_layout, found) - weights
    assert np.abs(away).max() < 0.02 / 16 + 15 * 0.02 * 2**-11


def test_a_rows_short_last_block_has_a_grid_of_its_own() -> None:
    weights = np.ones((1, 40), np.float32)
    weights[0, 32:] = 100
    found = round_to_nearest(weights, Grid("int8", 32))
    assert found.scales.shape == (1, 2)
    assert (int8_values(Grid("int8", 32).dense_layout, found) == 127).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_what_no_grid_holds_is_refused(bad: float) -> None:
    weights = np.ones((20, 32), np.float32)
    weights[17, 3] = bad
    with pytest.raises(EngineDirectoryError, match=r"not a finite|too large for int8"):
        round_to_nearest(weights, Grid("int8", 32))
