"""Packing: every shape survives the round trip, and damage is found before a kernel sees it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.native import layout
from engines.native.layout import BF16, Layout, LayoutError, PackedWeights
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import keep_from_codes

shapes = st.tuples(st.integers(1, 70), st.integers(1, 40))  # rows, groups


def random_layer(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 6, (n, k // 4), dtype=np.uint8)
    return rng.standard_normal((n, k)).astype(BF16), codes


@settings(deadline=None)
@given(shapes, st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_unpacking_gives_back_what_the_mask_keeps(
    shape: tuple[int, int], seed: int, threads: int
) -> None:
    n, k = shape[0], 4 * shape[1]
    weights, codes = random_layer(n, k, seed)
    packed = layout.pack_sparse(weights, codes, threads=threads)
    dense, unpacked_codes = layout.unpack(packed, threads=threads)
    np.testing.assert_array_equal(unpacked_codes, codes)
    kept = np.where(keep_from_codes(codes, TWO_FOUR), weights.view(np.uint16), 0)
    np.testing.assert_array_equal(dense.view(np.uint16), kept)


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 150), st.integers(0, 2**32 - 1))
def test_dense_weights_of_any_width_survive(n: int, k: int, seed: int) -> None:
    weights = np.random.default_rng(seed).standard_normal((n, k)).astype(BF16)
    dense, codes = layout.unpack(layout.pack_dense(weights))
    assert codes is None
    np.testing.assert_array_equal(dense.view(np.uint16), weights.view(np.uint16))


def test_sizes_are_those_of_the_layout() -> None:
    assert layout.packed_bytes(Layout.SPARSE24_BF16, 16, 32) == 576
    assert layout.packed_bytes(Layout.SPARSE24_BF16, 17, 36) == 4 * 576
    assert layout.packed_bytes(Layout.DENSE_BF16, 16, 32) == 1024
    assert layout.packed_bytes(Layout.DENSE_BF16, 1, 33) == 2048


def test_one_tile_byte_for_byte() -> None:
    """The stored format: a change here needs a new layout version."""
    weights = np.arange(32, dtype=np.float32).astype(BF16).reshape(1, 32)
    codes = np.array([[0, 1, 2, 3, 4, 5, 0, 5]], np.uint8)
    data = layout.pack_sparse(weights, codes).data
    assert data[:4].tolist() == [0x10, 0x32, 0x54, 0x50]
    kept = [data[64 * (1 + g) :][:4].view(np.uint16).view(BF16).tolist() for g in range(8)]
    assert kept == [[0, 1], [4, 6], [8, 11], [13, 14], [17, 19], [22, 23], [24, 25], [30, 31]]
    assert not data[4:64].any()
    assert data.size == 576


def test_negative_zero_is_stored_as_zero() -> None:
    weights = np.full((16, 32), -0.0, np.float32).astype(BF16)
    for packed in (
        layout.pack_sparse(weights, np.zeros((16, 8), np.uint8)),
        layout.pack_dense(weights),
    ):
        assert not packed.data.any()


def test_weights_are_aligned_to_vectors() -> None:
    for size in (64, 5000, 5 << 20):
        block = layout.empty(size)
        assert block.ctypes.data % 64 == 0
        assert block.shape == (size,)


def test_weights_lie_in_memory_that_can_have_huge_pages() -> None:
    block = layout.empty(5 << 20)
    maps = Path("/proc/self/maps").read_text().splitlines()
    for line in maps:
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        if begin <= block.ctypes.data < end:
            # Shared anonymous memory, which has none by default, shows as a file: /dev/zero.
            assert line.split()[1].endswith("p")
            assert "zero" not in line
            return
    raise AssertionError("the block is in no mapping")


def test_packing_refuses_what_is_not_a_layer_and_its_codes() -> None:
    weights, codes = random_layer(16, 32)
    with pytest.raises(LayoutError, match="bfloat16"):
        layout.pack_sparse(weights.astype(np.float32), codes)
    with pytest.raises(LayoutError, match="multiple of 4, not 30"):
        layout.pack_sparse(weights[:, :30], codes)
    with pytest.raises(LayoutError, match=r"\(16, 8\)"):
        layout.pack_sparse(weights, codes[:, :7])
    with pytest.raises(LayoutError, match="go up to 6"):
        layout.pack_sparse(weights, np.full_like(codes, 6))
    with pytest.raises(LayoutError, match="0 x 4"):
        layout.packed_bytes(Layout.SPARSE24_BF16, 0, 4)


@pytest.mark.parametrize("size", [0, 575, 577, 1152])
def test_wrong_sizes_are_refused(size: int) -> None:
    with pytest.raises(LayoutError, match="576 uint8"):
        PackedWeights(Layout.SPARSE24_BF16, 16, 32, np.zeros(size, np.uint8))


@settings(deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 20),
    st.integers(6, 15),
    st.integers(0, 2**32 - 1),
    st.integers(1, 3),
)
def test_a_bad_code_is_found_wherever_it_is(
    n: int, groups: int, code: int, seed: int, threads: int
) -> None:
    weights, codes = random_layer(n, 4 * groups, seed)
    packed = layout.pack_sparse(weights, codes)
    rng = np.random.default_rng(seed)
    row, group = int(rng.integers(n)), int(rng.integers(groups))
    tiles = -(-groups // 8)
    byte = (row // 16 * tiles + group // 8) * 576 + row % 16 * 4 + group % 8 // 2
    shift = 4 * (group % 2)
    packed.data[byte] = packed.data[byte] & (0xF0 >> shift) | code << shift
    with pytest.raises(LayoutError, match=f"code {code} at row {row}, group {group};"):
        layout.validate(packed, threads=threads)
    with pytest.raises(LayoutError, match=f"code {code} "):
        layout.unpack(packed)


@pytest.mark.parametrize(
    ("pack", "n", "k", "byte"),
    [
        ("sparse", 15, 32, 63),  # code of row 15
        ("sparse", 16, 28, 3),  # code of group 7, in the upper nibble
        ("sparse", 15, 32, 64 + 63),  # value of row 15
        ("sparse", 16, 28, 575),  # value of group 7
        ("dense", 15, 32, 63),
        ("dense", 16, 30, 1023),
    ],
)
def test_rubbish_in_the_padding_is_found(pack: str, n: int, k: int, byte: int) -> None:
    weights = np.ones((n, k), np.float32).astype(BF16)
    if pack == "sparse":
        packed = layout.pack_sparse(weights, np.zeros((n, k // 4), np.uint8))
    else:
        packed = layout.pack_dense(weights)
    layout.validate(packed)
    packed.data[byte] |= 0x10
    with pytest.raises(LayoutError, match="not zero beyond"):
        layout.validate(packed)
