"""Masks by order, and their straight-through gradient, against the definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskgen.format.pattern import Pattern
from maskgen.learning.native import native_module
from maskgen.transform.ordered_linear import BlockOrder, OrderedLinear, Stage, order_gradient

BLOCKS, REPEAT, SIZE = 3, 2, 8
COUNT = BLOCKS * REPEAT * SIZE


@pytest.fixture
def layer() -> OrderedLinear:
    torch.manual_seed(0)
    places = torch.stack([torch.randperm(SIZE) for _ in range(BLOCKS)])
    columns = torch.randperm(COUNT).view(BLOCKS, REPEAT, SIZE)
    order = BlockOrder(places, torch.zeros(BLOCKS, SIZE, SIZE, requires_grad=True))
    linear = nn.Linear(COUNT, 5)
    stage = Stage("ordered", 99, torch.Generator())
    return OrderedLinear(linear, torch.rand(5, COUNT), columns, order, stage, Pattern(2, 4))


def test_blocks_and_back(layer: OrderedLinear) -> None:
    matrix = torch.randn(5, COUNT)
    assert torch.equal(layer.from_blocks(layer.to_blocks(matrix)), matrix)


def test_the_mask_keeps_the_best_of_every_group_in_order(layer: OrderedLinear) -> None:
    mask, scores = layer.mask(), layer.from_blocks(layer.scores)
    for block in range(BLOCKS):
        for repeat in range(REPEAT):
            places = layer.columns[block, repeat][layer.order.places[block]]
            for group in places.view(-1, 4):
                for row in range(5):
                    best = scores[row, group].topk(2).indices
                    kept = mask[row, group].nonzero().flatten()
                    assert sorted(best.tolist()) == sorted(kept.tolist())
    x = torch.randn(7, COUNT)
    assert torch.allclose(layer(x), F.linear(x, layer.weight * mask, layer.bias))
    layer.stage.mask = "dense"
    assert torch.allclose(layer(x), F.linear(x, layer.weight, layer.bias))


def test_the_gradient_is_what_a_channel_at_a_place_keeps_and_drops(layer: OrderedLinear) -> None:
    """By hand: put a channel at a place, mask the group anew, add the slopes of what is kept."""
    slope = torch.randn(5, COUNT)
    found = order_gradient(layer, slope)
    scores, slopes = layer.scores, layer.to_blocks(slope)
    for block in range(BLOCKS):
        for place in range(SIZE):
            members = layer.order.places[block].view(-1, 4)[place // 4]
            others = [c for k, c in enumerate(members.tolist()) if k != place % 4]
            totals = []
            for channel in range(SIZE):
                group = torch.tensor([channel, *others])
                kept = scores[block][:, group].topk(2).indices
                totals.append(float(slopes[block][:, group].gather(1, kept).sum()))
            difference = torch.tensor(totals) - found[block, :, place]
            others_only = [c for c in range(SIZE) if c not in others]  # else it stands there twice
            assert difference[others_only].std() < 1e-4


def test_some_rows_stand_for_all(layer: OrderedLinear) -> None:
    slope = torch.randn(5, COUNT)
    whole, layer.stage.rows = order_gradient(layer, slope), 4
    drawn = torch.stack([order_gradient(layer, slope) for _ in range(600)])
    error = (drawn.mean(0) - whole).abs().mean() / whole.abs().mean()
    assert error < 0.1


def test_the_layer_gives_its_order_the_gradient(layer: OrderedLinear) -> None:
    x = torch.randn(7, COUNT, requires_grad=True)
    output = layer(x)
    slope = torch.randn_like(output)
    output.backward(slope)
    mask_slope = (slope.T @ x.detach()) * layer.weight
    assert torch.allclose(layer.order.soft.grad, order_gradient(layer, mask_slope), atol=1e-4)
    assert torch.allclose(x.grad, slope @ (layer.weight * layer.mask()), atol=1e-5)


@pytest.mark.parametrize("size", [8, 32, 64, 96])
@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(1, 4), Pattern(4, 8), Pattern(16, 32)])
def test_the_native_kernel_finds_what_torch_does(size: int, pattern: Pattern) -> None:
    if size % pattern.m:
        pytest.skip("groups do not divide the block")
    random = torch.Generator().manual_seed(size)
    places = torch.stack([torch.randperm(size, generator=random) for _ in range(BLOCKS)])
    columns = torch.arange(BLOCKS * size).view(BLOCKS, 1, size)
    order = BlockOrder(places, torch.zeros(BLOCKS, size, size, requires_grad=True))
    scores = torch.rand(50, BLOCKS * size, generator=random)
    stage = Stage("ordered", 99, torch.Generator())
    layer = OrderedLinear(nn.Linear(BLOCKS * size, 50), scores, columns, order, stage, pattern)
    slope = torch.randn(50, BLOCKS * size, generator=random)
    ours = order_gradient(layer, slope)
    layer.native = None
    torch.testing.assert_close(ours, order_gradient(layer, slope), rtol=1e-4, atol=1e-4)


def test_the_native_kernel_refuses_what_does_not_fit() -> None:
    gradient = native_module().order_gradient
    scores, places, found = torch.rand(2, 3, 8), torch.arange(8).repeat(2, 1), torch.empty(2, 8, 8)
    for arguments, reason in (
        ((scores, scores[:, :2].contiguous(), places, found, 2, 4), "the scores' shape"),
        ((scores, scores, places[:, :4].contiguous(), found, 2, 4), "places must be"),
        ((scores, scores, places, found[:, :4].contiguous(), 2, 4), "found must be"),
        ((scores, scores, places, found, 2, 3), "must divide a block"),
        ((scores, scores, places, found, 4, 4), "below m"),
        ((scores, scores, places + 1, found, 2, 4), "a channel that the block has not"),
    ):
        with pytest.raises(ValueError, match=reason):
            gradient(*arguments)
    wide = torch.zeros(1, 1, 1028)
    with pytest.raises(ValueError, match="at most 1024 channels"):
        gradient(wide, wide, torch.arange(1028)[None], torch.empty(1, 1028, 1028), 2, 4)
