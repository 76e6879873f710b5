"""The checkpoint format: values, codes, and `quantization_config`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import EngineDirectoryError
from engines.native.layout import BF16
from engines.vllm_plugin.format import (
    QuantizationSpec,
    dense_values,
    dropped_values,
    kept_values,
    pack_nibbles,
    parse_spec,
    unpack_nibbles,
)
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import keep_from_codes


@st.composite
def layers(draw: st.DrawFn) -> tuple[Any, Any]:
    n, groups = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dense = rng.standard_normal((n, groups * 4)).astype(BF16)
    dense[rng.random(dense.shape) < 0.2] = -0.0
    return dense, rng.integers(0, 6, (n, groups)).astype(np.uint8)


@given(layers())
def test_kept_and_dropped_make_up_the_layer(layer: tuple[Any, Any]) -> None:
    dense, codes = layer
    kept, dropped = kept_values(dense, codes), dropped_values(dense, codes)
    assert kept.shape == dropped.shape == (len(dense), dense.shape[1] // 2)
    assert np.array_equal(dense_values(kept, dropped, codes), dense)
    masked = np.where(keep_from_codes(codes, TWO_FOUR), dense, BF16.type(0))
    assert np.array_equal(dense_values(kept, None, codes), masked)
    for values in (kept, dropped):
        assert not (values.view(np.uint16) == 0x8000).any(), "-0.0 survived"


@given(layers())
def test_nibbles(layer: tuple[Any, Any]) -> None:
    _, codes = layer
    packed = pack_nibbles(codes)
    assert packed.shape == (len(codes), -(-codes.shape[1] // 2))
    assert np.array_equal(unpack_nibbles(packed, codes.shape[1]), codes)


def test_spec_round_trip() -> None:
    spec = QuantizationSpec(sparse_layers=("a", "b"), mask="general", mask_digest="0" * 64)
    assert parse_spec(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "update twofour"),
        ({"format_version": 2}, "does not have these values"),
        ({"values": "int8", "block": 32}, "does not have these values"),
        ({"format_version": 2, "values": "int8"}, "block 0"),
        ({"format_version": 2, "head": "int8"}, "block 0"),
        ({"format_version": 2, "values": "int8", "block": 32, "minima": True}, "no minima"),
        ({"format_version": 2, "head": "int8", "head_block": 32, "pattern": "4:8"}, "no pattern"),
        (
            {"format_version": 2, "values": "int4", "block": 32, "dense_kernel": "vllm"},
            "bf16 weights alone",
        ),
        ({"format_version": 0}, "format_version"),
        ({"pattern": "1:4"}, "pattern"),
        ({"dense_kernel": "magic"}, "dense_kernel"),
        ({"quant_method": "gptq"}, "quant_method"),
        ({"sparse_layers": ["a", "a"]}, "repeat"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_malformed_specs_are_refused(change: dict[str, Any], message: str) -> None:
    config = QuantizationSpec().model_dump(mode="json") | change
    with pytest.raises(EngineDirectoryError, match=message):
        parse_spec(config)
