"""Codes in a file: exact, dense, and refused where they are damaged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from maskgen.format.packing import pack_codes, packed_size, unpack_codes, word_of
from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.placements import code_dtype
from tests.maskgen.patterns import PATTERNS, any_pattern


def by_definition(codes: np.ndarray, pattern: Pattern) -> bytes:
    """The words as one number, least significant first."""
    word, number = word_of(pattern), 0
    flat = codes.reshape(-1).tolist()
    for index in range(0, len(flat), word.groups):
        part = flat[index : index + word.groups]
        value = sum(code * pattern.placements**i for i, code in enumerate(part))
        number |= value << (index // word.groups * word.bits)
    return number.to_bytes(packed_size(len(flat), pattern), "little")


@given(any_pattern, st.data())
def test_packing_is_exact(pattern: Pattern, data: st.DataObject) -> None:
    elements = st.integers(0, pattern.placements - 1)
    shape = hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=20)
    codes = data.draw(hnp.arrays(code_dtype(pattern), shape, elements=elements))
    packed = pack_codes(codes, pattern)
    assert packed.tobytes() == by_definition(codes, pattern)
    assert np.array_equal(unpack_codes(packed, codes.shape, pattern), codes)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_packing_crosses_its_chunk_boundary(pattern: Pattern) -> None:
    count = ((1 << 15) + 3) * word_of(pattern).groups + 1
    rng = np.random.default_rng(0)
    codes = rng.integers(0, pattern.placements, count, dtype=code_dtype(pattern))
    packed = pack_codes(codes, pattern)
    assert np.array_equal(unpack_codes(packed, codes.shape, pattern), codes)


def test_words_take_at_most_four_per_cent_more_than_the_entropy() -> None:
    for m in range(2, 33):
        for n in range(1, m):
            pattern = Pattern(n, m)
            word = word_of(pattern)
            assert word.bits <= 64
            assert pattern.placements**word.groups <= 1 << word.bits
            assert word.bits_per_weight(pattern) <= 1.04 * pattern.entropy


@pytest.mark.parametrize(
    ("pattern", "groups", "bits", "per_weight"),
    [
        ("1:4", 1, 2, 0.5),
        ("2:4", 24, 64, 0.6667),
        ("4:8", 7, 43, 0.7679),
        ("8:16", 3, 41, 0.8542),
        ("16:32", 2, 59, 0.9219),
    ],
)
def test_documented_words(pattern: str, groups: int, bits: int, per_weight: float) -> None:
    parsed = Pattern.parse(pattern)
    word = word_of(parsed)
    assert (word.groups, word.bits) == (groups, bits)
    assert word.bits_per_weight(parsed) == pytest.approx(per_weight, abs=5e-5)


def test_packed_word_is_base_six_little_endian() -> None:
    codes = np.array([5, 0, 3] + [0] * 20 + [4, 1], dtype=np.uint8)
    first, second = pack_codes(codes, TWO_FOUR).view("<u8").tolist()
    assert first == 5 + 3 * 36 + 4 * 6**23
    assert second == 1


@pytest.mark.parametrize("pattern", PATTERNS[1:], ids=str)
def test_unpack_refuses_bytes_that_pack_never_writes(pattern: Pattern) -> None:
    groups = word_of(pattern).groups
    size, dtype = packed_size(groups, pattern), code_dtype(pattern)
    with pytest.raises(ValueError, match=rf"above {pattern.placements}\*\*{groups}|after the last"):
        unpack_codes(np.full(size, 255, dtype=np.uint8), (groups,), pattern)
    one = pack_codes(np.full(groups, 1, dtype=dtype), pattern)
    with pytest.raises(ValueError, match="after the last group"):
        unpack_codes(one, (groups - 1,), pattern)
    with pytest.raises(ValueError, match=f"{groups + 1} groups of {pattern} take"):
        unpack_codes(one, (groups + 1,), pattern)
