"""The difference between two masks of a pattern other than 2:4, as swaps within groups.

A group of an N:M mask differs from its parent's by s swaps: s of the N weights that the parent
keeps are dropped, and s of the M - N others kept. How many groups have how many swaps is all that
is modelled, per layer; which weights are swapped is written as two numbers, evenly distributed.
The coder is that of `difference`: integer arithmetic alone decides what the bytes mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import constriction
import numpy as np
import numpy.typing as npt

from maskgen.format import ranks
from maskgen.format.difference import PRECISION_BITS
from maskgen.format.pattern import Pattern
from maskgen.format.placements import Codes, Keep, codes_from_keep, keep_from_codes

_TOTAL = 1 << PRECISION_BITS
_AnsCoder = constriction.stream.stack.AnsCoder
_Categorical = constriction.stream.model.Categorical
_Uniform = constriction.stream.model.Uniform


@dataclass(frozen=True, slots=True, eq=False)
class Swaps:
    """A coded difference.

    Attributes:
        words: uint32 (W,), the ANS coder's words, the last one holding the highest bits.
        shares: uint32 (L, S), for each layer, sorted by name, the frequency of 0, 1, ... swaps;
            every row sums to 2**24 and holds no zero. S = min(N, M - N) + 1.
    """

    words: npt.NDArray[np.uint32]
    shares: npt.NDArray[np.uint32]


def swap_counts(codes: Codes, parent: Codes, pattern: Pattern) -> npt.NDArray[np.int64]:
    """(S,): how many groups differ from the parent's by 0, 1, ... swaps."""
    swaps = _swaps(keep_from_codes(codes, pattern), keep_from_codes(parent, pattern), pattern.m)
    counts: npt.NDArray[np.int64] = np.bincount(swaps, minlength=_most(pattern) + 1)
    return counts


def swap_entropy(counts: npt.NDArray[np.int64], pattern: Pattern) -> float:
    """Bits that groups with these counts of swaps carry: how many, and which of equally many."""
    total, n = int(counts.sum()), counts[counts > 0].astype(np.float64)
    which = sum(
        int(count) * (math.log2(dropped) + math.log2(added))
        for count, (dropped, added) in zip(counts[1:], _choices(pattern), strict=True)
    )
    return float(total * math.log2(max(total, 1)) - (n * np.log2(n)).sum()) + which


def encode(codes: Mapping[str, Codes], parent: Mapping[str, Codes], pattern: Pattern) -> Swaps:
    """Code `codes` given `parent`; both have the same layers and shapes."""
    names = sorted(codes)
    coder = _AnsCoder()
    shares = np.empty((len(names), _most(pattern) + 1), dtype=np.uint32)
    # The coder is a stack: what is decoded first is encoded last.
    for index in reversed(range(len(names))):
        own = keep_from_codes(codes[names[index]], pattern).reshape(-1, pattern.m)
        given = keep_from_codes(parent[names[index]], pattern).reshape(-1, pattern.m)
        swaps = _swaps(own, given, pattern.m)
        shares[index] = _frequencies(np.bincount(swaps, minlength=shares.shape[1]))
        for count, (dropped, added) in reversed([*enumerate(_choices(pattern), 1)]):
            rows = swaps == count
            old, new = given[rows], own[rows]
            others = pattern.m - pattern.n
            _push(coder, _numbers(new[~old].reshape(-1, others), count), added)
            _push(coder, _numbers(~new[old].reshape(-1, pattern.n), count), dropped)
        coder.encode_reverse(swaps.astype(np.int32), _model(shares[index]))
    return Swaps(coder.get_compressed(), shares)


def decode(difference: Swaps, parent: Mapping[str, Codes], pattern: Pattern) -> dict[str, Codes]:
    """Inverse of `encode`. What it allocates depends on `parent` alone.

    Raises:
        ValueError: the difference does not belong to a parent of these layers and shapes.
    """
    names = sorted(parent)
    _check(difference.shares, len(names), pattern)
    words = np.array(difference.words, dtype=np.uint32)
    coder = _AnsCoder(words) if words.size else _AnsCoder()
    codes: dict[str, Codes] = {}
    for name, shares in zip(names, difference.shares, strict=True):
        keep = keep_from_codes(parent[name], pattern).reshape(-1, pattern.m)
        swaps = coder.decode(_model(shares), len(keep))
        for count, (dropped, added) in enumerate(_choices(pattern), 1):
            rows = swaps == count
            old = keep[rows]
            new = old.copy()
            new[old] = ~_subsets(_pop(coder, len(old), dropped), count, pattern.n).reshape(-1)
            others = pattern.m - pattern.n
            new[~old] = _subsets(_pop(coder, len(old), added), count, others).reshape(-1)
            keep[rows] = new
        shape = (parent[name].shape[0], -1)
        codes[name] = codes_from_keep(keep.reshape(shape), pattern)
    if not coder.is_empty():
        raise ValueError("the difference does not end where it should; it is corrupted")
    return codes


def _most(pattern: Pattern) -> int:
    return min(pattern.n, pattern.m - pattern.n)


def _choices(pattern: Pattern) -> list[tuple[int, int]]:
    """For 1, 2, ... swaps: ways to choose what is dropped, and what is kept instead."""
    n, others = pattern.n, pattern.m - pattern.n
    return [(math.comb(n, s), math.comb(others, s)) for s in range(1, _most(pattern) + 1)]


def _swaps(own: Keep, given: Keep, m: int) -> npt.NDArray[np.int64]:
    counts: npt.NDArray[np.int64] = np.count_nonzero((given & ~own).reshape(-1, m), axis=1)
    return counts


def _numbers(chosen: Keep, count: int) -> npt.NDArray[np.uint32]:
    """(groups, places), `count` of each True -> the number of each choice."""
    if count == chosen.shape[1] or not len(chosen):
        return np.zeros(len(chosen), dtype=np.uint32)
    return ranks.ranks_of(chosen, Pattern(count, chosen.shape[1]))


def _subsets(numbers: npt.NDArray[np.uint32], count: int, places: int) -> Keep:
    if count == places:
        return np.ones((len(numbers), places), dtype=np.bool_)
    return ranks.keep_of(numbers, Pattern(count, places))


def _push(coder: Any, numbers: npt.NDArray[np.uint32], ways: int) -> None:
    if ways > 1 and numbers.size:
        coder.encode_reverse(numbers.astype(np.int32), _Uniform(ways))


def _pop(coder: Any, size: int, ways: int) -> npt.NDArray[np.uint32]:
    if ways == 1 or not size:
        return np.zeros(size, dtype=np.uint32)
    numbers: npt.NDArray[np.uint32] = coder.decode(_Uniform(ways), size).astype(np.uint32)
    return numbers


def _model(shares: npt.NDArray[np.uint32]) -> object:
    # As in `difference`: one off each makes constriction's rounding exact.
    return _Categorical(shares.astype(np.float64) - 1, perfect=False, lazy=False)


def _frequencies(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """Counts to frequencies: they sum to 2**24, none is zero."""
    total = max(int(counts.sum()), 1)
    exact = [max(int(count) * _TOTAL // total, 1) for count in counts]
    exact[int(np.argmax(exact))] += _TOTAL - sum(exact)
    return np.array(exact, dtype=np.uint32)


def _check(shares: npt.NDArray[np.uint32], layers: int, pattern: Pattern) -> None:
    if shares.shape != (layers, _most(pattern) + 1):
        raise ValueError(
            f"the difference has shares of shape {shares.shape}, its parent of {layers} layers"
            f" needs {(layers, _most(pattern) + 1)}"
        )
    if (shares == 0).any() or (shares.sum(axis=-1, dtype=np.uint64) != _TOTAL).any():
        raise ValueError(f"a row of the difference's shares does not sum to {_TOTAL}")
