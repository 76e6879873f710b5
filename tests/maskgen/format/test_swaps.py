"""Differences of patterns other than 2:4: exact, small, and their bytes mean what is documented."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from maskgen.format import swaps
from maskgen.format.pattern import Pattern
from maskgen.format.placements import codes_from_keep, keep_from_codes
from tests.maskgen.masks import random_mask
from tests.maskgen.patterns import PATTERNS

WIDE = [pattern for pattern in PATTERNS if str(pattern) != "2:4"]


def swapped(codes: np.ndarray, pattern: Pattern, share: float, seed: int) -> np.ndarray:
    """`codes` with one kept and one dropped weight exchanged in about this share of the groups."""
    rng = np.random.default_rng(seed)
    keep = keep_from_codes(codes, pattern).reshape(-1, pattern.m)
    for index in np.flatnonzero(rng.random(len(keep)) < share):
        drop, add = (
            rng.choice(np.flatnonzero(keep[index])),
            rng.choice(np.flatnonzero(~keep[index])),
        )
        keep[index, [drop, add]] = False, True
    return codes_from_keep(keep.reshape(codes.shape[0], -1), pattern)


class Reader:
    """The stack of asymmetric numeral systems, in a few lines of integer arithmetic."""

    def __init__(self, words: list[int]) -> None:
        self.words, self.state = words, 0
        for _ in range(2):
            if words:
                self.state = self.state << 32 | words.pop()

    def take(self, frequencies: list[int]) -> int:
        low, symbol, start = self.state & 0xFFFFFF, 0, 0
        while start + frequencies[symbol] <= low:
            start += frequencies[symbol]
            symbol += 1
        self.state = (self.state >> 24) * frequencies[symbol] + low - start
        if self.state < 1 << 32 and self.words:
            self.state = self.state << 32 | self.words.pop()
        return symbol

    def number(self, ways: int) -> int:
        if ways == 1:
            return 0
        each = (1 << 24) // ways
        return self.take([each] * (ways - 1) + [(1 << 24) - each * (ways - 1)])


def read_by_the_specification(
    coded: swaps.Swaps, parent: dict[str, np.ndarray], pattern: Pattern
) -> dict[str, np.ndarray]:
    reader, found = Reader(coded.words.tolist()), {}
    for name, shares in zip(sorted(parent), coded.shares.tolist(), strict=True):
        keep = keep_from_codes(parent[name], pattern).reshape(-1, pattern.m)
        counts = [reader.take(shares) for _ in keep]
        for swap in range(1, len(shares)):
            rows = [row for row, count in enumerate(counts) if count == swap]
            for places, value in ((pattern.n, False), (pattern.m - pattern.n, True)):
                # All that is dropped first, then all that is kept instead; both of the parent's.
                ways = list(itertools.combinations(range(places), swap))
                chosen = [ways[reader.number(len(ways))] for _ in rows]
                for row, way in zip(rows, chosen, strict=True):
                    old = keep_from_codes(parent[name], pattern).reshape(-1, pattern.m)[row]
                    keep[row, np.flatnonzero(old != value)[list(way)]] = value
        found[name] = keep.reshape(parent[name].shape[0], -1)
    assert (reader.state, reader.words) == (0, [])
    return found


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("pattern", [Pattern(1, 4), Pattern(4, 8), Pattern(3, 5)], ids=str)
def test_an_independent_reader_gets_the_same_masks(pattern: Pattern, share: float) -> None:
    parent = random_mask(0, pattern=pattern)
    other = random_mask(1, pattern=pattern)
    rng = np.random.default_rng(2)
    codes = {
        name: np.where(rng.random(own.shape) < share, other.codes[name], own)
        for name, own in parent.codes.items()
    }
    coded = swaps.encode(codes, parent.codes, pattern)
    found = read_by_the_specification(coded, dict(parent.codes), pattern)
    decoded = swaps.decode(coded, parent.codes, pattern)
    for name, own in codes.items():
        assert np.array_equal(decoded[name], own)
        assert np.array_equal(found[name], keep_from_codes(own, pattern))


@pytest.mark.parametrize("pattern", WIDE, ids=str)
def test_a_few_swaps_take_few_bits(pattern: Pattern) -> None:
    shapes = {f"layers.{i}": (256, 2048) for i in range(2)}
    parent = random_mask(0, shapes, pattern)
    codes = {name: swapped(own, pattern, 0.02, 1) for name, own in parent.codes.items()}
    coded = swaps.encode(codes, parent.codes, pattern)
    counts = [swaps.swap_counts(codes[name], parent.codes[name], pattern) for name in shapes]
    entropy = sum(swaps.swap_entropy(count, pattern) for count in counts)
    stored = 8 * (coded.words.nbytes + coded.shares.nbytes)
    assert entropy <= stored <= 1.02 * entropy + 8 * coded.shares.nbytes + 64
    for count in counts:
        total = int(count.sum())
        p = count[count > 0] / total
        which = count[1] * math.log2(pattern.n * (pattern.m - pattern.n))
        assert count[2:].sum() == 0
        assert swaps.swap_entropy(count, pattern) == pytest.approx(
            -total * float((p * np.log2(p)).sum()) + which
        )


def test_a_difference_that_does_not_fit_is_refused() -> None:
    pattern = Pattern(4, 8)
    parent = random_mask(0, pattern=pattern)
    coded = swaps.encode(random_mask(1, pattern=pattern).codes, parent.codes, pattern)
    with pytest.raises(ValueError, match=r"shares of shape \(2, 5\)"):
        swaps.decode(swaps.Swaps(coded.words, coded.shares[:2]), parent.codes, pattern)
    broken = coded.shares.copy()
    broken[0, 0] += 1
    with pytest.raises(ValueError, match="does not sum to 16777216"):
        swaps.decode(swaps.Swaps(coded.words, broken), parent.codes, pattern)
    more = swaps.Swaps(np.append(np.uint32(7), coded.words).astype(np.uint32), coded.shares)
    with pytest.raises(ValueError, match="does not end where it should"):
        swaps.decode(more, parent.codes, pattern)
