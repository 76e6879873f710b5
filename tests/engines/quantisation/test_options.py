"""Options of values: what they come to, and combinations that make no sense."""

from __future__ import annotations

from typing import Any

import pytest

from engines.native import lowbit
from engines.quantisation.options import BLOCKS, HEAD_BLOCK, ValueOptions
from engines.typed_options import read_options


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (0, False, "bf16", True)),
        ({"head": "int8"}, (0, False, "int8", False)),
        ({"values": "int8"}, (64, False, "int8", False)),
        ({"values": "int4"}, (32, True, "int8", False)),
        ({"values": "int4", "block": "64", "minima": "false"}, (64, False, "int8", False)),
        ({"values": "int8", "head": "bf16"}, (64, False, "bf16", False)),
    ],
)
def test_defaults_follow_the_values(given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    options = read_options(ValueOptions, given, "a build")
    assert (options.block_inputs, options.has_minima, options.head_values, options.plain) == (
        expected
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"values": "int2"}, "values is 'int2': must be 'bf16', 'int8' or 'int4'"),
        ({"values": "int4", "block": 48}, "block is 48: must be 32, 64 or 128"),
        ({"block": 32}, "bf16 values have no block"),
        ({"values": "int8", "minima": True}, "int8 values have no minima"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_options(ValueOptions, given, "a build")


def test_blocks_are_those_of_the_layouts() -> None:
    assert BLOCKS == lowbit.BLOCKS
    assert HEAD_BLOCK in BLOCKS
