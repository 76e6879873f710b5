"""Packing int8 and int4 weights: all survive the round trip; damage is found before a kernel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.native import layout, lowbit
from engines.native.layout import Layout, LayoutError, PackedWeights
from engines.native.lowbit import QuantisedWeights
from tests.engines.native.lowbit_reference import DENSE, INT4, LAYOUTS, PAIRS, random_weights


@settings(deadline=None)
@given(
    st.sampled_from(LAYOUTS),
    st.integers(1, 40),
    st.integers(1, 60),
    st.sampled_from(lowbit.BLOCKS),
    st.booleans(),
    st.sampled_from([4, 8, 16, 32]),
    st.integers(0, 2**32 - 1),
)
def test_unpacking_gives_back_what_was_packed(
    kind: Layout, n: int, groups: int, block: int, minima: bool, m: int, seed: int
) -> None:
    weights = random_weights(kind, n, 4 * groups, block, minima=minima, m=m, seed=seed)
    packed = lowbit.pack(kind, weights, threads=1 + seed % 3)
    again = lowbit.unpack(packed, threads=1 + seed % 2)
    keep = np.ones((n, 4 * groups), np.bool_)
    if weights.kept is not None:
        keep = lowbit.keep_of_words(weights.kept, 4 * groups)
        np.testing.assert_array_equal(again.kept, weights.kept)
    np.testing.assert_array_equal(again.values, np.where(keep, weights.values, 0))
    np.testing.assert_array_equal(again.scales, weights.scales)
    if packed.minima:
        np.testing.assert_array_equal(again.minima, weights.minima)
    np.testing.assert_array_equal(lowbit.pack(kind, again).data, packed.data)


@pytest.mark.parametrize("kind", DENSE)
def test_dense_weights_of_any_width_survive(kind: Layout) -> None:
    for k in (1, 31, 33, 130):
        weights = random_weights(kind, 5, k, 64)
        again = lowbit.unpack(lowbit.pack(kind, weights))
        np.testing.assert_array_equal(again.values, weights.values)


@pytest.mark.parametrize(
    ("kind", "tile"),
    [
        (Layout.DENSE_INT8, 512),
        (Layout.DENSE_INT4, 256),
        (Layout.SPARSE24_INT8, 320),
        (Layout.SPARSE24_INT4, 192),
        (Layout.BITMAP32_INT8, 320),
        (Layout.BITMAP32_INT4, 192),
    ],
)
def test_sizes_are_those_of_the_layout(kind: Layout, tile: int) -> None:
    assert layout.packed_bytes(kind, 16, 32, 32) == 64 + tile
    # 576 inputs are 4.5 blocks of 128: five scales, and 18 tiles rather than 20.
    assert layout.packed_bytes(kind, 17, 576, 128) == 2 * (3 * 64 + 18 * tile)
    if kind in INT4:
        assert layout.packed_bytes(kind, 16, 576, 32, True) == 14 * 64 + 18 * tile


def one_row(kind: Layout, values: list[int], kept: int | None, **more: np.ndarray) -> np.ndarray:
    """The bytes of a layer of one row and 32 inputs, scale 1."""
    words = None if kept is None else np.array([[kept]], np.uint32)
    row, scale = np.array([values], np.int8), np.ones((1, 1), np.float16)
    return lowbit.pack(kind, QuantisedWeights(row, scale, 32, kept=words, **more)).data


def test_a_dense_row_byte_for_byte() -> None:
    """The stored format: a change here needs a new layout version."""
    data = one_row(Layout.DENSE_INT8, list(range(-16, 16)), None)
    assert data[:64].tolist() == [0x00, 0x3C] + [0] * 62
    tile = data[64:].reshape(8, 16, 4).view(np.int8)
    assert tile[:, 0].ravel().tolist() == list(range(-16, 16))
    assert not tile[:, 1:].any()
    levels = [i % 16 for i in range(32)]
    minima = np.array([[-100]], np.int8)
    data = one_row(Layout.DENSE_INT4, levels, None, minima=minima)
    assert data[:64].tolist() == [0, 0x3C] + [0] * 30 + [0x9C] + [0xC0] * 15 + [0] * 16
    tile = data[64:].reshape(4, 16, 4)
    low, high = tile[:, 0] & 15, tile[:, 0] >> 4
    assert np.stack([low, high], 1).ravel().tolist() == levels
    assert (tile[:, 1:] == 0x88).all()


def test_a_2_4_row_byte_for_byte() -> None:
    """The stored format: a change here needs a new layout version."""
    kept = 0b1100_1010_0110_1001_0101_0011_1100_0011  # group 0 is 0011: its first two inputs
    data = one_row(Layout.SPARSE24_INT8, list(range(32)), kept)
    places = [[0, 1, 2, 3], [0, 1, 0, 2], [0, 3, 1, 2], [1, 3, 2, 3]]  # by step of eight inputs
    word = [sum(step[j] << 2 * s for s, step in enumerate(places)) for j in range(4)]
    assert data[64:68].tolist() == word
    assert data[68:72].tolist() == [0, 0x55, 0, 0x55]  # beyond the last row: the first two
    steps = data[128:].reshape(4, 16, 4)[:, 0].tolist()
    assert steps == [[0, 1, 6, 7], [8, 9, 12, 14], [16, 19, 21, 22], [25, 27, 30, 31]]
    data = one_row(Layout.SPARSE24_INT4, [i % 16 for i in range(32)], kept)
    pairs = data[128:].reshape(2, 16, 4)[:, 0]
    assert pairs.tolist() == [[0x80, 0x91, 0xC6, 0xE7], [0x90, 0xB3, 0xE5, 0xF6]]


def test_a_bitmap_row_byte_for_byte() -> None:
    """The stored format: a change here needs a new layout version."""
    kept = 0xFF00_00FF
    data = one_row(Layout.BITMAP32_INT8, list(range(32)), kept)
    assert data[64:72].tolist() == [0xFF, 0, 0, 0xFF, 0x33, 0x33, 0x33, 0x33]
    assert data[128:144].tolist() == [*range(8), *range(24, 32)]
    weights = random_weights(Layout.BITMAP32_INT4, 16, 32, 32)
    keep = lowbit.keep_of_words(weights.kept, 32)
    rows = weights.values[keep].reshape(16, 16)
    chunks = lowbit.pack(Layout.BITMAP32_INT4, weights).data[128:].reshape(2, 4, 16)
    # Rows 0-3 in the low nibbles of the first 64 bytes, 4-7 in the high ones; then 8-15.
    np.testing.assert_array_equal(chunks[0] & 15, rows[0:4])
    np.testing.assert_array_equal(chunks[0] >> 4, rows[4:8])
    np.testing.assert_array_equal(chunks[1] & 15, rows[8:12])
    np.testing.assert_array_equal(chunks[1] >> 4, rows[12:16])


def test_what_a_level_stands_for() -> None:
    values = np.array([[0, 8, 15, 3]], np.int8)
    weights = QuantisedWeights(values, np.array([[0.5]], np.float16), 32)
    np.testing.assert_array_equal(
        lowbit.dequantise(Layout.DENSE_INT4, weights), [[-32, 0, 28, -20]]
    )
    weights = replace(weights, minima=np.array([[7]], np.int8))
    np.testing.assert_array_equal(
        lowbit.dequantise(Layout.DENSE_INT4, weights), [[3.5, 35.5, 63.5, 15.5]]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.zeros((16, 32), np.int16)}, "int8 matrix"),
        ({"values": np.full((16, 32), -128, np.int8)}, "a value that is none at row 0, input 0"),
        ({"scales": np.full((16, 1), np.inf, np.float16)}, "scale that is negative or not finite"),
        ({"scales": np.full((16, 1), -1, np.float16)}, "scale that is negative"),
        ({"scales": np.full((16, 1), np.nan, np.float16)}, "scale that is negative or not finite"),
        ({"scales": np.ones((16, 2), np.float16)}, r"scales are float16 of \(16, 1\)"),
        ({"scales": np.ones((16, 1), np.float32)}, "scales are float16"),
        ({"kept": None}, "needs kept words"),
        ({"kept": np.full((16, 1), 0x33333337, np.uint32)}, "no placement of 2:4 at row 0"),
        ({"kept": np.full((16, 2), 0x33333333, np.uint32)}, r"kept words are uint32 of \(16, 1\)"),
        ({"minima": np.zeros((16, 1), np.int8)}, "only int4 layouts have minima"),
        ({"block": 48}, "32, 64 or 128 inputs, not 48"),
    ],
)
def test_packing_refuses_what_is_no_layer(change: dict[str, object], message: str) -> None:
    weights = random_weights(Layout.SPARSE24_INT8, 16, 32, 32)
    with pytest.raises(LayoutError, match=message):
        lowbit.pack(Layout.SPARSE24_INT8, replace(weights, **change))


def test_packing_refuses_levels_and_minima_out_of_range() -> None:
    weights = random_weights(Layout.DENSE_INT4, 16, 32, 32, minima=True)
    for level in (-1, 16):
        with pytest.raises(LayoutError, match="a value that is none"):
            lowbit.pack(
                Layout.DENSE_INT4, replace(weights, values=np.full((16, 32), level, np.int8))
            )
    for minimum in (-128, 8):
        changed = replace(weights, minima=np.full((16, 1), minimum, np.int8))
        with pytest.raises(LayoutError, match="a minimum that is not -127 to 7"):
            lowbit.pack(Layout.DENSE_INT4, changed)
    with pytest.raises(LayoutError, match="takes no kept words"):
        lowbit.pack(Layout.DENSE_INT4, replace(weights, kept=np.zeros((16, 1), np.uint32)))
    with pytest.raises(LayoutError, match="multiple of 4, not 30"):
        layout.packed_bytes(Layout.BITMAP32_INT4, 16, 30, 32)
    with pytest.raises(LayoutError, match="DENSE_BF16 has no int8"):
        lowbit.pack(Layout.DENSE_BF16, weights)


def test_wrong_sizes_are_refused() -> None:
    for size in (0, 383, 385):
        with pytest.raises(LayoutError, match="384 uint8"):
            PackedWeights(Layout.SPARSE24_INT8, 16, 32, np.zeros(size, np.uint8), 32)
    with pytest.raises(LayoutError, match="no blocks"):
        PackedWeights(Layout.DENSE_BF16, 16, 32, np.zeros(1024, np.uint8), 32)


HEADER = 64
FAULTS = [
    # layout, n, k, byte, what it becomes, message
    (Layout.SPARSE24_INT8, 16, 32, 1, 0x7C, "scale"),  # infinity
    (Layout.SPARSE24_INT8, 16, 32, 31, 0x80, "scale"),  # -0.0
    (Layout.SPARSE24_INT4, 16, 32, HEADER, 0x55, "no placement of 2:4"),  # two equal places
    (Layout.SPARSE24_INT8, 16, 32, HEADER + 1, 0x00, "no placement of 2:4"),  # higher one first
    (Layout.BITMAP32_INT8, 16, 32, HEADER, 0x01, "no placement of 16 of 32"),
    (Layout.DENSE_INT8, 16, 32, HEADER, 0x80, "value that is none"),
    (Layout.SPARSE24_INT8, 16, 32, HEADER + 64, 0x80, "value that is none"),
    (Layout.DENSE_INT8, 15, 32, 30, 1, "padding"),  # scale of row 15
    (Layout.DENSE_INT8, 15, 32, HEADER + 63, 1, "padding"),  # value of row 15
    (Layout.DENSE_INT8, 16, 28, HEADER + 511, 1, "padding"),  # value of input 31
    (Layout.DENSE_INT4, 15, 32, HEADER + 63, 0x87, "padding"),
    (Layout.SPARSE24_INT8, 15, 32, HEADER + 61, 0xAA, "padding"),  # places of row 15
    (Layout.BITMAP32_INT4, 15, 32, HEADER + 63, 0xCC, "padding"),
    (Layout.DENSE_INT8, 16, 32, 63, 1, "padding"),  # behind the scales
]


@pytest.mark.parametrize(("kind", "n", "k", "byte", "value", "message"), FAULTS)
def test_damage_is_found(kind: Layout, n: int, k: int, byte: int, value: int, message: str) -> None:
    weights = random_weights(kind, n, k, 32)
    if kind in PAIRS:  # the first two of every group: places 0 and 1
        weights = replace(weights, kept=np.full((n, 1), 0x33333333, np.uint32))
    packed = lowbit.pack(kind, weights)
    lowbit.validate(packed)
    packed.data[byte] = value
    with pytest.raises(LayoutError, match=message):
        lowbit.validate(packed)
    with pytest.raises(LayoutError, match=message):
        lowbit.unpack(packed)


def test_a_minimum_out_of_range_is_found() -> None:
    packed = lowbit.pack(
        Layout.DENSE_INT4, random_weights(Layout.DENSE_INT4, 15, 32, 32, minima=True)
    )
    for byte, value, message in ((32, 8, "minimum"), (32, 0x80, "minimum"), (47, 0, "padding")):
        data = packed.data.copy()
        data[byte] = value
        with pytest.raises(LayoutError, match=message):
            lowbit.validate(replace(packed, data=data))
