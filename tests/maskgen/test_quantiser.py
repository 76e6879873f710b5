"""Fake quantisation: the grids, their rounding, and gradients that pass through."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engines.native.layout import Layout
from engines.native.lowbit import QuantisedWeights, dequantise, kept_words, pack, unpack
from engines.quantisation.grid import Grid as BuildGrid
from engines.quantisation.grid import round_to_nearest
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import keep_from_codes, project
from maskgen.learning.native import native_module
from maskgen.recovery.quantiser import WeightGrid, fake_quantise, quantise

GRIDS = [
    WeightGrid(values, block, minima)
    for values, minima in (("int8", False), ("int4", False), ("int4", True))
    for block in (32, 64)
]


def masked_weight(columns: int = 80) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    weight = torch.randn(6, columns, generator=random) * torch.logspace(-2, 1, 6)[:, None]
    keep = torch.rand(6, columns, generator=random) < 0.5
    weight[2, :32] = 0
    keep[3, 32:64] = False
    return weight, keep


@pytest.mark.parametrize("grid", GRIDS)
def test_kept_weights_are_rounded_to_the_nearest_value_of_a_small_grid(grid):
    weight, keep = masked_weight()
    found = quantise(weight, keep, grid)
    assert torch.equal(found.scales, found.scales.half().float())
    assert (found.scales > 0).all()
    least, most = (-127, 127) if grid.values == "int8" else (0, 15)
    assert torch.equal(found.numbers, found.numbers.round().clamp(least, most))
    step = 1 if grid.values == "int8" else 8
    away = (found.weight(80) - weight).abs().masked_fill(~keep, 0).unflatten(1, (-1, 16))
    scales = found.scales[:, :, 0].repeat_interleave(grid.block // 16, dim=1)[:, :5, None]
    # Half a step; a minimum is rounded to an eighth of one.
    assert (away <= scales * step * (0.5 + 0.07 * grid.minima) * 1.002).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_what_is_quantised_stays_what_it_is(grid):
    weight, keep = masked_weight()
    once = quantise(weight, keep, grid).weight(80)
    again = quantise(once, keep, grid).weight(80)
    torch.testing.assert_close(again[keep], once[keep], rtol=2e-3, atol=0)


def test_a_minimum_of_its_own_follows_weights_that_lie_to_one_side():
    weight = torch.linspace(0.0, 1.0, 32)[None]
    keep = torch.ones_like(weight, dtype=torch.bool)
    errors = [
        float(
            (quantise(weight, keep, WeightGrid("int4", 32, m)).weight(32) - weight).square().mean()
        )
        for m in (False, True)
    ]
    assert errors[1] < 0.4 * errors[0]


def test_gradients_pass_straight_through_and_dropped_weights_are_zero():
    weight, keep = masked_weight()
    model = nn.Sequential(nn.Linear(80, 6, bias=False))
    model[0].weight = nn.Parameter(weight.clone())
    fake_quantise(model, {"0": keep}, WeightGrid("int4"))
    inputs = torch.randn(10, 80, generator=torch.Generator().manual_seed(1))
    model(inputs).sum().backward()
    original = model[0].parametrizations.weight.original
    assert torch.equal(original, weight)
    torch.testing.assert_close(original.grad, inputs.sum(dim=0).expand(6, 80))
    assert not model[0].weight[~keep].any()
    assert torch.equal(
        model[0].weight[keep], quantise(weight, keep, WeightGrid("int4")).weight(80)[keep]
    )


@pytest.mark.parametrize("columns", [80, 96, 33, 7])
@pytest.mark.parametrize("grid", [*GRIDS, WeightGrid("int4", 20, True), WeightGrid("int8", 5)])
def test_the_native_kernel_is_the_quantiser_bit_for_bit(grid, columns):
    weight, keep = masked_weight(columns)
    weight[4, :3] = torch.tensor([1e-9, -3e-8, 0.0])
    native, out = native_module(), torch.full_like(weight, torch.nan)
    native.fake_quantise(
        weight, keep.view(torch.uint8), out, grid.block, grid.values == "int4", grid.minima
    )
    expected = quantise(weight, keep, grid).weight(columns).masked_fill(~keep, 0)
    assert torch.equal(out, expected)


def test_the_native_kernel_refuses_what_does_not_fit():
    weight, keep = torch.zeros(2, 8), torch.ones(2, 8, dtype=torch.uint8)
    quantise_into = native_module().fake_quantise
    with pytest.raises(ValueError, match="must have the weight's shape"):
        quantise_into(weight, keep[:, :4].contiguous(), weight, 4, True, False)
    with pytest.raises(ValueError, match="at least one weight"):
        quantise_into(weight, keep, weight, 0, True, False)
    with pytest.raises(ValueError, match="int8 has no minima"):
        quantise_into(weight, keep, weight, 4, False, True)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_engines_layouts_hold_what_the_quantiser_makes(grid):
    weight, _ = masked_weight(96)
    keep = torch.from_numpy(keep_from_codes(project(weight.abs().numpy(), TWO_FOUR), TWO_FOUR))
    found = quantise(weight, keep, grid)
    minima = None
    if grid.minima:
        minima = found.minima[:, :, 0].to(torch.int8).numpy()
    layout = Layout.SPARSE24_INT8 if grid.values == "int8" else Layout.SPARSE24_INT4
    packed = pack(
        layout,
        QuantisedWeights(
            found.numbers.flatten(1)[:, :96].to(torch.int8).contiguous().numpy(),
            found.scales[:, :, 0].half().numpy(),
            grid.block,
            minima,
            kept_words(keep.numpy()),
        ),
    )
    stands_for = torch.from_numpy(dequantise(layout, unpack(packed)))
    assert torch.equal(stands_for, found.weight(96).masked_fill(~keep, 0))


@pytest.mark.parametrize("grid", GRIDS)
def test_a_build_rounds_recovered_weights_to_what_they_were_tuned_as(grid):
    weight = torch.randn(6, 80, generator=torch.Generator().manual_seed(5))
    keep = torch.from_numpy(keep_from_codes(project(weight.abs().numpy(), TWO_FOUR), TWO_FOUR))
    tuned = quantise(weight, keep, grid).weight(80).masked_fill(~keep, 0)
    stored = tuned.bfloat16().float().numpy()
    built = round_to_nearest(stored, BuildGrid(grid.values, grid.block, grid.minima))
    layout = Layout.DENSE_INT8 if grid.values == "int8" else Layout.DENSE_INT4
    again = torch.from_numpy(dequantise(layout, built))
    # A number of bf16 has 8 bits: 1/256 of the largest weight moves a scale by as much.
    assert (again - tuned)[keep].abs().max() <= tuned.abs().max() / 100
