"""N:M patterns: which weights of a group are kept, and how 2:4 placements are coded and packed.

A *group* is M consecutive weights along a linear layer's input dimension; an N:M mask keeps N of
each. For 2:4 there are six placements, and a group's *code* (0-5) is its place in `PLACEMENTS`.

When scores tie, the lowest index is kept. Every implementation in twofour follows this rule, so
that the same scores give the same mask everywhere.
"""

from __future__ import annotations

import itertools
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_T = TypeVar("_T", bound=np.generic)

Codes = npt.NDArray[np.uint8]
Keep = npt.NDArray[np.bool_]

GROUP = 4
"""Weights in a group of the 2:4 pattern."""

PLACEMENTS: Keep = np.array(
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

_WORD_LIMIT = 6**GROUPS_PER_WORD
_DIGIT = 6**4  # four codes make one digit; six digits make one word
_PLACEMENT_BITS: npt.NDArray[np.uint8] = (PLACEMENTS @ (1 << np.arange(GROUP))).astype(np.uint8)
_CHUNK = 1 << 18  # groups handled at a time, so that temporaries stay in cache


def project(scores: npt.NDArray[np.floating]) -> Codes:
    """Keep the two highest scores of every four; ties keep the lowest index.

    Args:
        scores: (..., K) importance of each weight, K a multiple of 4.

    Returns:
        (..., K/4) codes.

    Raises:
        ValueError: K is not a multiple of 4, or a score is not a number.
    """
    groups = _split(scores, GROUP).reshape(-1, GROUP)
    codes = np.empty(groups.shape[0], dtype=np.uint8)
    for start in range(0, len(codes), _CHUNK):
        column = np.ascontiguousarray(groups[start : start + _CHUNK].T)
        if np.isnan(column).any():
            raise ValueError("a score is not a number (NaN); no placement can be chosen")
        outcome = np.zeros(column.shape[1], dtype=np.uint8)
        for bit, (i, j) in enumerate(itertools.combinations(range(GROUP), 2)):
            outcome |= (column[i] >= column[j]).view(np.uint8) << np.uint8(bit)
        codes[start : start + _CHUNK] = _CODE_OF_OUTCOME[outcome]
    return codes.reshape(*scores.shape[:-1], scores.shape[-1] // GROUP)


def project_nm(scores: npt.NDArray[np.floating], n: int, m: int) -> Keep:
    """Keep the `n` highest scores of every `m`; ties keep the lowest index.

    Args:
        scores: (..., K), K a multiple of `m`.

    Returns:
        (..., K), True = kept.

    Raises:
        ValueError: not 0 <= n <= m, K is not a multiple of `m`, or a score is not a number.
    """
    if m < 1 or not 0 <= n <= m:
        raise ValueError(f"{n}:{m} is not a pattern: it takes 0 <= N <= M and M >= 1")
    groups = _split(scores, m)
    if np.isnan(groups).any():
        raise ValueError("a score is not a number (NaN); no placement can be chosen")
    # Negating an integer or -0.0 could reorder ties; a stable sort of the reversed group cannot.
    order = m - 1 - np.argsort(groups[..., ::-1], axis=-1, kind="stable")
    keep = np.zeros(groups.shape, dtype=np.bool_)
    np.put_along_axis(keep, order[..., m - n :], True, axis=-1)
    return keep.reshape(scores.shape)


def keep_from_codes(codes: Codes) -> Keep:
    """(..., K/4) codes -> (..., K), True = kept.

    Raises:
        ValueError: a code is above 5.
    """
    check_codes(codes)
    keep = _KEEP_OF_CODE[codes].view(np.bool_)
    return keep.reshape(*codes.shape[:-1], codes.shape[-1] * GROUP)


def codes_from_keep(keep: Keep) -> Codes:
    """(..., K), True = kept -> (..., K/4) codes.

    Raises:
        ValueError: K is not a multiple of 4, or a group does not keep exactly two weights.
    """
    if keep.dtype != np.bool_:
        raise ValueError(f"keep is {keep.dtype}, expected bool")
    groups = _split(np.ascontiguousarray(keep), GROUP)
    # The product moves the four bytes' lowest bits side by side into the top byte.
    bits = groups.view("<u4")[..., 0] * np.uint32(0x01020408) >> np.uint32(24) & np.uint32(0xF)
    codes: Codes = _CODE_OF_BITS[bits]
    wrong = codes > 5
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"group {where} keeps {int(groups[where].sum())} of 4 weights, expected exactly 2"
        )
    return codes


def check_codes(codes: Codes) -> None:
    """Raise ValueError unless `codes` is a uint8 array of values 0-5."""
    if codes.dtype != np.uint8:
        raise ValueError(f"codes are {codes.dtype}, expected uint8")
    if codes.size and int(codes.max()) > 5:
        raise ValueError(f"code {int(codes.max())} is no placement of 2:4, expected 0 to 5")


def packed_size(groups: int) -> int:
    """Bytes that `pack_codes` needs for this many groups."""
    return -(-groups // GROUPS_PER_WORD) * 8


def pack_codes(codes: Codes) -> npt.NDArray[np.uint8]:
    """Pack codes at 24 groups per 64 bits (2.67 bits a group, 0.667 a weight).

    Groups are taken in row-major order. A word is sum(code[i] * 6**i), i = 0..23, stored
    little-endian; the last word is filled up with code 0.

    Returns:
        1-D uint8 of `packed_size(codes.size)` bytes.

    Raises:
        ValueError: a code is above 5.
    """
    check_codes(codes)
    words = -(-codes.size // GROUPS_PER_WORD)
    padded = np.zeros(words * GROUPS_PER_WORD, dtype=np.uint8)
    padded[: codes.size] = codes.reshape(-1)
    quads = padded.reshape(-1, 4)
    digits = quads[:, 3].astype(np.uint16)
    for i in (2, 1, 0):
        digits = digits * np.uint16(6) + quads[:, i]
    columns = digits.reshape(words, 6)
    packed = columns[:, 5].astype("<u8")
    for i in (4, 3, 2, 1, 0):
        packed = packed * np.uint64(_DIGIT) + columns[:, i]
    return packed.astype("<u8", copy=False).view(np.uint8)


def unpack_codes(packed: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> Codes:
    """Inverse of `pack_codes`, for codes of the given shape.

    Raises:
        ValueError: the length does not match `shape`, or the bytes are none that `pack_codes`
            writes (a word above 6**24 - 1, or a non-zero code after the last group).
    """
    count = int(np.prod(shape, dtype=np.int64))
    if packed.dtype != np.uint8 or packed.ndim != 1 or packed.size != packed_size(count):
        raise ValueError(
            f"packed codes are {packed.dtype} {packed.shape}; "
            f"{count} groups take {packed_size(count)} bytes"
        )
    rest = np.ascontiguousarray(packed).view("<u8").astype(np.uint64)
    if rest.size and int(rest.max()) >= _WORD_LIMIT:
        raise ValueError("packed codes hold a word above 6**24 - 1")
    quads = np.empty((rest.size, 6), dtype=np.uint32)
    for i in range(6):
        higher = rest // np.uint64(_DIGIT)
        quads[:, i] = _QUAD_OF_DIGIT[rest - higher * np.uint64(_DIGIT)]
        rest = higher
    codes = quads.reshape(-1).view(np.uint8)
    if codes[count:].any():
        raise ValueError("packed codes go on after the last group")
    return codes[:count].reshape(shape)


def _split(values: npt.NDArray[_T], m: int) -> npt.NDArray[_T]:
    if values.ndim == 0 or values.shape[-1] % m:
        width = values.shape[-1] if values.ndim else 0
        raise ValueError(f"width {width} is not a multiple of {m}")
    return values.reshape(*values.shape[:-1], values.shape[-1] // m, m)


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
