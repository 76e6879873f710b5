"""2:4 in particular: its six placements, and faster ways to do what `placements` does for any N:M.

A group's *code* (0-5) is its place in `PLACEMENTS`. Kernels, engines and MaskLLM build on them.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

GROUP = 4
"""Weights in a group."""

PLACEMENTS: npt.NDArray[np.bool_] = np.array(
    [
        [1, 1, 0, 0],
        [1, 0, 1, 0],
        [1, 0, 0, 1],
        [0, 1, 1, 0],
        [0, 1, 0, 1],
        [0, 0, 1, 1],
    ],
    dtype=np.bool_,
)
"""(6, 4): row = code, True = kept."""

PAIRS: npt.NDArray[np.uint8] = np.array([np.flatnonzero(row) for row in PLACEMENTS], dtype=np.uint8)
"""(6, 2): the two kept positions of each code, ascending."""

GROUPS_PER_WORD = 24
"""Codes in one 64-bit word: the most for which 6**n still fits."""

_DIGIT = 6**4  # four codes make one digit; six digits make one word
_PLACEMENT_BITS: npt.NDArray[np.uint8] = (PLACEMENTS @ (1 << np.arange(GROUP))).astype(np.uint8)
_CHUNK = 1 << 18  # groups handled at a time, so that temporaries stay in cache


def best_codes(groups: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """(groups, 4) scores, none of them NaN -> (groups,) codes of the two highest of each."""
    codes = np.empty(groups.shape[0], dtype=np.uint8)
    for start in range(0, len(codes), _CHUNK):
        column = np.ascontiguousarray(groups[start : start + _CHUNK].T)
        outcome = np.zeros(column.shape[1], dtype=np.uint8)
        for bit, (i, j) in enumerate(itertools.combinations(range(GROUP), 2)):
            outcome |= (column[i] >= column[j]).view(np.uint8) << np.uint8(bit)
        codes[start : start + _CHUNK] = _CODE_OF_OUTCOME[outcome]
    return codes


def keep_of_codes(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """(groups,) codes -> (groups, 4), True = kept."""
    return _KEEP_OF_CODE[codes].view(np.bool_).reshape(-1, GROUP)


def codes_of_keep(keep: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """(groups, 4), two of each True -> (groups,) codes."""
    # The product moves the four bytes' lowest bits side by side into the top byte.
    words = np.ascontiguousarray(keep).view("<u4")[..., 0]
    codes: npt.NDArray[np.uint8] = _CODE_OF_BITS[
        words * np.uint32(0x01020408) >> np.uint32(24) & np.uint32(0xF)
    ]
    return codes


def words_of_codes(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """(words * 24,) codes -> (words,) sums of code[i] * 6**i."""
    quads = codes.reshape(-1, 4)
    digits = quads[:, 3].astype(np.uint16)
    for i in (2, 1, 0):
        digits = digits * np.uint16(6) + quads[:, i]
    columns = digits.reshape(-1, 6)
    words = columns[:, 5].astype(np.uint64)
    for i in (4, 3, 2, 1, 0):
        words = words * np.uint64(_DIGIT) + columns[:, i]
    return words


def codes_of_words(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Inverse of `words_of_codes`, for words below 6**24."""
    quads = np.empty((words.size, 6), dtype=np.uint32)
    for i in range(6):
        higher = words // np.uint64(_DIGIT)
        quads[:, i] = _QUAD_OF_DIGIT[words - higher * np.uint64(_DIGIT)]
        words = higher
    return quads.reshape(-1).view(np.uint8)


def _code_of_bits() -> npt.NDArray[np.uint8]:
    table = np.full(1 << GROUP, 255, dtype=np.uint8)
    table[_PLACEMENT_BITS] = np.arange(6, dtype=np.uint8)
    return table


def _code_of_outcome() -> npt.NDArray[np.uint8]:
    """Outcomes of the six comparisons of a group (bit set: the lower index wins) -> code."""
    pairs = list(itertools.combinations(range(GROUP), 2))
    table = np.full(1 << len(pairs), 255, dtype=np.uint8)
    for outcome in range(1 << len(pairs)):
        wins = [0] * GROUP
        for bit, (i, j) in enumerate(pairs):
            wins[i if outcome >> bit & 1 else j] += 1
        if sorted(wins) == [0, 1, 2, 3]:
            table[outcome] = _CODE_OF_BITS[sum(1 << i for i in range(GROUP) if wins[i] >= 2)]
    return table


def _quad_of_digit() -> npt.NDArray[np.uint32]:
    digit = np.arange(_DIGIT)
    quads = np.stack([digit // 6**i % 6 for i in range(4)], axis=-1).astype(np.uint8)
    return quads.view(np.uint32).reshape(-1)


_KEEP_OF_CODE = PLACEMENTS.view(np.uint32).reshape(-1)
_CODE_OF_BITS = _code_of_bits()
_CODE_OF_OUTCOME = _code_of_outcome()
_QUAD_OF_DIGIT = _quad_of_digit()
