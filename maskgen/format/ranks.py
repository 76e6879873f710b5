"""Placements by number: the place of a placement in lexicographic order, for any pattern.

Placements are ordered as texts of ones (kept) and zeros, the largest first: for 2:4 that is 1100
1010 1001 0110 0101 0011. The number of a placement is how many stand before it: at each position
that it drops, all that agree with it so far and keep this one (the combinatorial number system).
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt

from maskgen.format.pattern import Pattern

_CHUNK = 1 << 15  # groups handled at a time, so that temporaries stay in cache


def ranks_of(keep: npt.NDArray[np.bool_], pattern: Pattern) -> npt.NDArray[np.uint32]:
    """(groups, m), n of each True -> (groups,) numbers."""
    skipped, ranks = _skipped(pattern), np.zeros(len(keep), dtype=np.uint32)
    for start in range(0, len(keep), _CHUNK):
        columns = np.ascontiguousarray(keep[start : start + _CHUNK].T)
        rank = ranks[start : start + _CHUNK]
        left = np.full(columns.shape[1], pattern.n, dtype=np.intp)
        for position, kept in enumerate(columns):
            rank += np.where(kept, np.uint32(0), skipped[position][left])
            left -= kept
    return ranks


def keep_of(ranks: npt.NDArray[np.uint32], pattern: Pattern) -> npt.NDArray[np.bool_]:
    """(groups,) numbers below `pattern.placements` -> (groups, m), n of each True."""
    skipped = _skipped(pattern)
    keep = np.empty((len(ranks), pattern.m), dtype=np.bool_)
    for start in range(0, len(ranks), _CHUNK):
        rest = ranks[start : start + _CHUNK].copy()
        columns = np.empty((pattern.m, len(rest)), dtype=np.bool_)
        left = np.full(len(rest), pattern.n, dtype=np.intp)
        for position, kept in enumerate(columns):
            bound = skipped[position][left]
            np.less(rest, bound, out=kept)
            rest -= np.where(kept, np.uint32(0), bound)
            left -= kept
        keep[start : start + _CHUNK] = columns.T
    return keep


@cache
def _skipped(pattern: Pattern) -> npt.NDArray[np.uint32]:
    """(m, n + 1): placements that keep a position, given how many are left to keep from there."""
    m, n = pattern.m, pattern.n
    table = np.zeros((m, n + 1), dtype=np.uint32)
    for position in range(m):
        for left in range(1, n + 1):
            table[position, left] = math.comb(m - position - 1, left - 1)
    return table
