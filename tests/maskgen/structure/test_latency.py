"""Latency files: read as written, refused where they do not fit, and what budgets make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maskgen.format.model_directory import read_model_config
from maskgen.structure.config import structure_config
from maskgen.structure.latency import (
    LayerLatency,
    read_latency,
    sizes_of,
    write_latency,
)
from maskgen.structure.learn import StructureRequest, learn_structure
from maskgen.structure.width import LayerShape, StructureError, UnitCosts
from tests.maskgen.structure.structure_runs import TEXT, choose
from tests.tiny_model import make_tiny_llama

HEADS_COST_MOST = UnitCosts(channel=0.001, head=10.0, fixed=1.0)


def _latency(model: Path, costs: UnitCosts = HEADS_COST_MOST) -> LayerLatency:
    return LayerLatency(sizes_of(LayerShape.of(read_model_config(model))), costs, {"isa": "avx2"})


def test_a_file_is_read_as_written(tmp_path: Path) -> None:
    latency = _latency(make_tiny_llama(tmp_path / "model"))
    write_latency(tmp_path / "latency.json", latency)
    assert read_latency(tmp_path / "latency.json") == latency


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "no latency file of version 1"),
        ({"format": "other"}, "no latency file of version 1"),
        ({"sizes": {"hidden": 3}}, "sizes must be hidden, intermediate"),
        ({"microseconds": {"channel": 1.0}}, "must be channel, head and fixed"),
        (
            {"microseconds": {"channel": -1.0, "head": 1.0, "fixed": 0.0}},
            r"channel costs -1\.0 microseconds; it must be above 0",
        ),
        (
            {"microseconds": {"channel": 1.0, "head": "2", "fixed": 0.0}},
            "head costs '2' microseconds",
        ),
    ],
)
def test_what_is_no_latency_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "latency.json"
    write_latency(path, _latency(make_tiny_llama(tmp_path / "model")))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(StructureError, match=message):
        read_latency(path)


def test_the_latency_of_other_layers_is_refused(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model")
    shape = LayerShape.of({**read_model_config(model), "intermediate_size": 40})
    with pytest.raises(StructureError, match=r"measured on layers of .* the model has"):
        _latency(model).applied(shape)


def test_a_method_keeps_what_fits_into_the_time(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model")
    shape = _latency(model).applied(LayerShape.of(read_model_config(model)))
    ratio = shape.cost_share(shape.widest(1.0, 1, 8))
    request = StructureRequest(
        "magnitude", structure_config("magnitude", {}), ratio, 1, 8, _latency(model)
    )
    result = learn_structure(model, None, request)
    # A head's weights are few, and its time is nearly all: one head less leaves every channel.
    assert result.structure.width == shape.widest(1.0, 1, 8)
    assert result.latency_share == pytest.approx(ratio)
    assert result.share > 1.5 * ratio


def test_maskprune_meets_a_budget_of_time(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model")
    latency = _latency(model, UnitCosts(channel=1.0, head=1.0, fixed=20.0))
    result = choose(model, tmp_path / "run", "maskprune", ratio=0.7, latency=latency, texts=TEXT)
    assert result.latency_share is not None
    assert 0.5 < result.latency_share <= 0.7
