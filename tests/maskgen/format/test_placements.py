"""Placements: the projection's tie rule, codes, packing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from maskgen.format import placements

CODES = hnp.arrays(np.uint8, hnp.array_shapes(max_dims=3, max_side=60), elements=st.integers(0, 5))
# Few distinct values, so that most groups hold a tie.
SCORES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 9), st.integers(0, 12).map(lambda groups: 4 * groups)),
    elements=st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.5, 1.0, np.inf]),
)


def kept_by_definition(group: np.ndarray, n: int) -> list[int]:
    """The `n` best of a group; Python's sort is stable, so the lowest index wins a tie."""
    return sorted(sorted(range(len(group)), key=lambda i: -group[i])[:n])


def test_codes_follow_the_documented_order() -> None:
    as_text = ["".join("1" if kept else "0" for kept in row) for row in placements.PLACEMENTS]
    assert as_text == ["1100", "1010", "1001", "0110", "0101", "0011"]
    assert placements.PAIRS.tolist() == [list(p) for p in itertools.combinations(range(4), 2)]


@given(SCORES)
def test_project_keeps_the_two_best_and_the_lowest_index_of_a_tie(scores: np.ndarray) -> None:
    codes = placements.project(scores)
    assert codes.shape == (scores.shape[0], scores.shape[1] // 4)
    for group, code in zip(scores.reshape(-1, 4), codes.reshape(-1), strict=True):
        assert placements.PAIRS[code].tolist() == kept_by_definition(group, 2)


@given(SCORES)
def test_general_projection_agrees_with_the_codes(scores: np.ndarray) -> None:
    keep = placements.project_nm(scores, 2, 4)
    assert np.array_equal(placements.codes_from_keep(keep), placements.project(scores))


@given(st.integers(1, 8), st.data())
def test_general_projection_keeps_exactly_n(m: int, data: st.DataObject) -> None:
    n = data.draw(st.integers(0, m))
    scores = data.draw(hnp.arrays(np.int8, (3, 2 * m), elements=st.integers(-2, 2)))
    keep = placements.project_nm(scores, n, m)
    for group, kept in zip(scores.reshape(-1, m), keep.reshape(-1, m), strict=True):
        assert np.flatnonzero(kept).tolist() == kept_by_definition(group.astype(int), n)


def test_project_crosses_its_chunk_boundary() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, size=(3, 4 * ((1 << 17) + 5))).astype(np.float32)
    expected = placements.codes_from_keep(placements.project_nm(scores, 2, 4))
    assert np.array_equal(placements.project(scores), expected)


@given(CODES)
def test_keep_and_codes_are_inverse_and_exactly_half_dense(codes: np.ndarray) -> None:
    keep = placements.keep_from_codes(codes)
    assert (keep.reshape(-1, 4).sum(axis=1) == 2).all()
    assert np.array_equal(placements.codes_from_keep(keep), codes)


@given(CODES)
def test_packing_is_exact(codes: np.ndarray) -> None:
    packed = placements.pack_codes(codes)
    assert packed.size == placements.packed_size(codes.size) == -(-codes.size // 24) * 8
    assert np.array_equal(placements.unpack_codes(packed, codes.shape), codes)


def test_packed_word_is_base_six_little_endian() -> None:
    codes = np.array([5, 0, 3] + [0] * 20 + [4, 1], dtype=np.uint8)
    first, second = placements.pack_codes(codes).view("<u8").tolist()
    assert first == 5 + 3 * 36 + 4 * 6**23
    assert second == 1


def test_a_million_weights_take_two_thirds_of_a_bit_each() -> None:
    codes = np.full(24 * 10_000, 5, dtype=np.uint8)
    assert placements.pack_codes(codes).size * 8 / (codes.size * 4) == pytest.approx(2 / 3)


def test_unpack_refuses_bytes_that_pack_never_writes() -> None:
    with pytest.raises(ValueError, match=r"above 6\*\*24"):
        placements.unpack_codes(np.full(8, 255, dtype=np.uint8), (24,))
    with pytest.raises(ValueError, match="after the last group"):
        placements.unpack_codes(placements.pack_codes(np.full(24, 1, dtype=np.uint8)), (23,))
    with pytest.raises(ValueError, match="25 groups take 16 bytes"):
        placements.unpack_codes(np.zeros(8, dtype=np.uint8), (25,))


@pytest.mark.parametrize("function", [placements.project, lambda s: placements.project_nm(s, 2, 4)])
def test_bad_scores_are_refused(function) -> None:
    with pytest.raises(ValueError, match="width 6 is not a multiple of 4"):
        function(np.zeros((2, 6), dtype=np.float32))
    with pytest.raises(ValueError, match="NaN"):
        function(np.array([1.0, np.nan, 2.0, 3.0]))


def test_bad_codes_and_keeps_are_refused() -> None:
    with pytest.raises(ValueError, match="code 6"):
        placements.pack_codes(np.array([6], dtype=np.uint8))
    with pytest.raises(ValueError, match="expected uint8"):
        placements.keep_from_codes(np.zeros(4, dtype=np.int64))
    keep = np.array([[True, True, False, False], [True, True, True, False]])
    with pytest.raises(ValueError, match=r"group \(1, 0\) keeps 3 of 4"):
        placements.codes_from_keep(keep)
    with pytest.raises(ValueError, match="3:2 is not a pattern"):
        placements.project_nm(np.zeros(4), 3, 2)
