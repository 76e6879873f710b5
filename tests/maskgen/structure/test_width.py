"""Widths: counted by a closed formula, and never above what was asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskgen.structure.width import LayerShape, StructureError, UnitCosts, Width

SMOLLM2: dict[str, Any] = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}


def test_weights_are_those_of_the_linears() -> None:
    shape = LayerShape.of(SMOLLM2)
    attention = 2 * 576 * 576 + 2 * 192 * 576
    assert shape.weights(shape.full) == attention + 3 * 576 * 1536
    assert shape.weights(Width(640, 2)) == attention * 2 // 3 + 3 * 576 * 640


@pytest.mark.parametrize(
    ("ratio", "heads", "width"),
    [(1.0, None, Width(1536, 3)), (0.8, None, Width(1088, 3)), (0.8, 2, Width(1280, 2))],
)
def test_the_widest_layers_of_a_budget(ratio: float, heads: int | None, width: Width) -> None:
    shape = LayerShape.of(SMOLLM2)
    assert shape.widest(ratio, heads) == width
    assert shape.share(width) <= ratio


@given(ratio=st.floats(0.3, 1), heads=st.integers(1, 3), multiple=st.sampled_from([8, 64, 100]))
def test_no_wider_layers_are_within_the_budget(ratio: float, heads: int, multiple: int) -> None:
    shape = LayerShape.of(SMOLLM2)
    width = shape.widest(ratio, heads, multiple)
    assert shape.share(width) <= ratio + 1e-9
    wider = min(width.intermediate + multiple, 1536)
    assert wider == width.intermediate or shape.share(Width(wider, heads)) > ratio


def test_a_head_dim_of_its_own_counts() -> None:
    shape = LayerShape.of({**SMOLLM2, "head_dim": 128})
    assert (shape.head, shape.head_weights) == (128, 576 * 128 * 8)


@pytest.mark.parametrize(
    ("ratio", "heads", "message"),
    [
        (0.0, None, "ratio of 0.0 is not above 0"),
        (1.5, None, "at most 1"),
        (0.25, None, "the smallest is 0.281"),
        (0.8, 4, "4 key-value heads are not between 1 and the model's 3"),
    ],
)
def test_budgets_that_cannot_be_met_are_refused(
    ratio: float, heads: int | None, message: str
) -> None:
    with pytest.raises(StructureError, match=message):
        LayerShape.of(SMOLLM2).widest(ratio, heads)


def test_measured_costs_take_the_place_of_weights() -> None:
    # 1,536 channels at 0.1 and 3 heads at 20, beside 40: 253.6 in all.
    shape = replace(LayerShape.of(SMOLLM2), measured=UnitCosts(0.1, 20.0, 40.0))
    assert shape.costs.of(shape.full) == pytest.approx(253.6)
    width = shape.widest(0.8)
    assert width == Width(1024, 3)  # 0.8 of it leaves 102.88 for channels
    assert shape.cost_share(width) == pytest.approx(202.4 / 253.6)
    assert shape.share(width) == LayerShape.of(SMOLLM2).share(width)
    with pytest.raises(StructureError, match=r"the smallest is 0\.420"):
        shape.widest(0.4)
