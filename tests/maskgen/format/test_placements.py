"""Placements of every pattern: the projection's tie rule, codes and their order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from maskgen.format import placements, two_four
from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.placements import codes_from_keep, keep_from_codes, keep_highest, project
from tests.maskgen.patterns import PATTERNS, any_pattern

# Few distinct values, so that most groups hold a tie.
VALUES = [-np.inf, -1.0, -0.0, 0.0, 0.5, 1.0, np.inf]


@st.composite
def scores_and_patterns(draw: st.DrawFn) -> tuple[np.ndarray, Pattern]:
    pattern = draw(any_pattern)
    shape = (draw(st.integers(1, 4)), draw(st.integers(0, 5)) * pattern.m)
    return draw(hnp.arrays(np.float32, shape, elements=st.sampled_from(VALUES))), pattern


def kept_by_definition(group: np.ndarray, n: int) -> list[int]:
    """The `n` best of a group; Python's sort is stable, so the lowest index wins a tie."""
    return sorted(sorted(range(len(group)), key=lambda i: -group[i])[:n])


def test_codes_follow_the_documented_order() -> None:
    texts = [placements.placement_text(row) for row in two_four.PLACEMENTS]
    assert texts == ["1100", "1010", "1001", "0110", "0101", "0011"]
    assert two_four.PAIRS.tolist() == [list(p) for p in itertools.combinations(range(4), 2)]
    assert np.array_equal(placements.all_placements(TWO_FOUR), two_four.PLACEMENTS)


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p.placements < 20_000], ids=str)
def test_codes_count_placements_from_the_largest_down(pattern: Pattern) -> None:
    kept = [np.flatnonzero(row).tolist() for row in placements.all_placements(pattern)]
    assert kept == [list(c) for c in itertools.combinations(range(pattern.m), pattern.n)]


@given(scores_and_patterns())
def test_projection_keeps_the_best_and_the_lowest_index_of_a_tie(
    given: tuple[np.ndarray, Pattern],
) -> None:
    scores, pattern = given
    codes = project(scores, pattern)
    assert codes.shape == (scores.shape[0], scores.shape[1] // pattern.m)
    assert codes.dtype == placements.code_dtype(pattern)
    keep = keep_from_codes(codes, pattern).reshape(-1, pattern.m)
    for group, kept in zip(scores.reshape(-1, pattern.m), keep, strict=True):
        assert np.flatnonzero(kept).tolist() == kept_by_definition(group, pattern.n)
    assert np.array_equal(codes, codes_from_keep(keep_highest(scores, pattern), pattern))


def test_project_crosses_its_chunk_boundary() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, size=(3, 4 * ((1 << 17) + 5))).astype(np.float32)
    expected = codes_from_keep(keep_highest(scores, TWO_FOUR), TWO_FOUR)
    assert np.array_equal(project(scores, TWO_FOUR), expected)
    wide = Pattern(8, 16)
    keep = keep_highest(scores[:, : 16 * ((1 << 15) + 1)], wide)
    assert np.array_equal(keep_from_codes(codes_from_keep(keep, wide), wide), keep)


@given(any_pattern, st.data())
def test_keep_and_codes_are_inverse_and_keep_exactly_n(
    pattern: Pattern, data: st.DataObject
) -> None:
    last = pattern.placements - 1
    elements = st.one_of(st.integers(0, last), st.sampled_from([0, last]))
    dtype = placements.code_dtype(pattern)
    codes = data.draw(
        hnp.arrays(dtype, hnp.array_shapes(max_dims=3, max_side=8), elements=elements)
    )
    keep = keep_from_codes(codes, pattern)
    assert (keep.reshape(-1, pattern.m).sum(axis=1) == pattern.n).all()
    assert np.array_equal(codes_from_keep(keep, pattern), codes)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_bad_input_is_refused(pattern: Pattern) -> None:
    m, wrong = pattern.m, Pattern(1, 2)
    with pytest.raises(ValueError, match=f"width {m + 1} is not a multiple of {m}"):
        project(np.zeros((2, m + 1), dtype=np.float32), pattern)
    with pytest.raises(ValueError, match="NaN"):
        project(np.full(m, np.nan), pattern)
    with pytest.raises(ValueError, match=f"code {pattern.placements} is no placement of {pattern}"):
        keep_from_codes(np.array([pattern.placements], placements.code_dtype(pattern)), pattern)
    with pytest.raises(ValueError, match=f"codes are int64, those of {pattern} uint"):
        keep_from_codes(np.zeros(4, dtype=np.int64), pattern)
    keep = np.zeros((2, m), dtype=np.bool_)
    keep[:, : pattern.n] = True
    keep[1, pattern.n] = True
    with pytest.raises(ValueError, match=rf"group \(1, 0\) keeps {pattern.n + 1} of {m}"):
        codes_from_keep(keep, pattern)
    with pytest.raises(ValueError, match="is no placement of 1:2"):
        keep_from_codes(np.array([2], np.uint8), wrong)
