"""Which weights of a group are kept: scores to codes, codes to keeps and back, for any pattern.

A *group* is M consecutive weights along a linear layer's input dimension; an N:M mask keeps N of
each. A *placement* is one way to do so, and a group's *code* the placement's number in the order
of `maskgen.format.ranks`.

When scores tie, the lowest index is kept. Every implementation in twofour follows this rule, so
that the same scores give the same mask everywhere.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from maskgen.format import ranks, two_four
from maskgen.format.pattern import TWO_FOUR, Pattern

_T = TypeVar("_T", bound=np.generic)

Codes = npt.NDArray[np.unsignedinteger]
"""In the type that `code_dtype` gives."""
Keep = npt.NDArray[np.bool_]


def code_dtype(pattern: Pattern) -> np.dtype[np.unsignedinteger]:
    """The narrowest of uint8, uint16 and uint32 that holds the pattern's codes."""
    return np.min_scalar_type(pattern.placements - 1)


def project(scores: npt.NDArray[np.floating], pattern: Pattern) -> Codes:
    """Keep the highest scores of every group; ties keep the lowest index.

    Args:
        scores: (..., K) importance of each weight, K a multiple of M.

    Returns:
        (..., K/M) codes.

    Raises:
        ValueError: K is not a multiple of M, or a score is not a number.
    """
    if pattern != TWO_FOUR:
        return codes_from_keep(keep_highest(scores, pattern), pattern)
    groups = _split(scores, pattern.m)
    _refuse_nan(groups)
    codes = two_four.best_codes(groups.reshape(-1, pattern.m))
    return codes.reshape(groups.shape[:-1])


def keep_highest(scores: npt.NDArray[np.generic], pattern: Pattern) -> Keep:
    """As `project`, to (..., K), True = kept."""
    m = pattern.m
    groups = _split(scores, m)
    _refuse_nan(groups)
    # Negating an integer or -0.0 could reorder ties; a stable sort of the reversed group cannot.
    order = m - 1 - np.argsort(groups[..., ::-1], axis=-1, kind="stable")
    keep = np.zeros(groups.shape, dtype=np.bool_)
    np.put_along_axis(keep, order[..., m - pattern.n :], True, axis=-1)
    return keep.reshape(scores.shape)


def keep_from_codes(codes: Codes, pattern: Pattern) -> Keep:
    """(..., K/M) codes -> (..., K), True = kept.

    Raises:
        ValueError: see `check_codes`.
    """
    check_codes(codes, pattern)
    flat = codes.reshape(-1)
    keep = (
        two_four.keep_of_codes(flat.astype(np.uint8, copy=False))
        if pattern == TWO_FOUR
        else ranks.keep_of(flat.astype(np.uint32), pattern)
    )
    return keep.reshape(*codes.shape[:-1], codes.shape[-1] * pattern.m)


def codes_from_keep(keep: Keep, pattern: Pattern) -> Codes:
    """(..., K), True = kept -> (..., K/M) codes.

    Raises:
        ValueError: K is not a multiple of M, or a group does not keep exactly N weights.
    """
    if keep.dtype != np.bool_:
        raise ValueError(f"keep is {keep.dtype}, expected bool")
    groups = _split(keep, pattern.m)
    count = np.count_nonzero(groups, axis=-1)
    if (wrong := count != pattern.n).any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"group {where} keeps {int(count[where])} of {pattern.m} weights, expected exactly"
            f" {pattern.n}"
        )
    flat = groups.reshape(-1, pattern.m)
    codes = two_four.codes_of_keep(flat) if pattern == TWO_FOUR else ranks.ranks_of(flat, pattern)
    return codes.astype(code_dtype(pattern), copy=False).reshape(groups.shape[:-1])


def check_codes(codes: Codes, pattern: Pattern) -> None:
    """Raise ValueError unless `codes` has the pattern's type, and each is one of its placements."""
    if codes.dtype != code_dtype(pattern):
        raise ValueError(f"codes are {codes.dtype}, those of {pattern} {code_dtype(pattern)}")
    if codes.size and int(codes.max()) >= pattern.placements:
        raise ValueError(
            f"code {int(codes.max())} is no placement of {pattern}, expected 0 to"
            f" {pattern.placements - 1}"
        )


def all_placements(pattern: Pattern) -> Keep:
    """(placements, M): every placement, in the order of the codes; for patterns that have few."""
    return ranks.keep_of(np.arange(pattern.placements, dtype=np.uint32), pattern)


def placement_text(placement: Keep) -> str:
    """A placement as ones (kept) and zeros."""
    return "".join("1" if kept else "0" for kept in placement)


def _split(values: npt.NDArray[_T], m: int) -> npt.NDArray[_T]:
    if values.ndim == 0 or values.shape[-1] % m:
        width = values.shape[-1] if values.ndim else 0
        raise ValueError(f"width {width} is not a multiple of {m}")
    return values.reshape(*values.shape[:-1], values.shape[-1] // m, m)


def _refuse_nan(scores: npt.NDArray[np.generic]) -> None:
    if np.isnan(scores).any():
        raise ValueError("a score is not a number (NaN); no placement can be chosen")
