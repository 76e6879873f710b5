"""The difference between two masks, entropy-coded to within a few per cent of its entropy.

A group's code is coded given the parent's code of the same group: six little distributions over
six codes, one per parent code, make a *table*. Layers share tables where that is cheaper than
having their own. Tables hold integer frequencies that sum to 2**24, and `constriction`'s ANS
coder (Duda, arXiv:0902.0271, asymmetric numeral systems) turns them into bytes. Only integer
arithmetic decides what the bytes mean, so any ANS implementation can read them: see
docs/formats.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import constriction
import numpy as np
import numpy.typing as npt

from maskgen.format.placements import Codes

PRECISION_BITS = 24
TABLE_SHAPE = (6, 6)
MAX_TABLES = 256

_TOTAL = 1 << PRECISION_BITS
_TABLE_BITS = 36 * 32
_AnsCoder = constriction.stream.stack.AnsCoder
_Categorical = constriction.stream.model.Categorical


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """A coded difference.

    Attributes:
        words: uint32 (W,), the ANS coder's words, the last one holding the highest bits.
        tables: uint32 (T, 6, 6), frequency of a code (last axis) given the parent's code (middle
            axis); every row sums to 2**24 and holds no zero.
        table_of_layer: uint8 (L,), in sorted order of the layers' names.
    """

    words: npt.NDArray[np.uint32]
    tables: npt.NDArray[np.uint32]
    table_of_layer: npt.NDArray[np.uint8]


def transition_counts(codes: Codes, parent: Codes) -> npt.NDArray[np.int64]:
    """(6, 6): how many groups have the parent's code (row) and this code (column)."""
    pairs = parent.reshape(-1) * np.uint8(6) + codes.reshape(-1)
    counts: npt.NDArray[np.int64] = np.bincount(pairs, minlength=36).reshape(TABLE_SHAPE)
    return counts


def conditional_entropy(counts: npt.NDArray[np.int64]) -> float:
    """Bits that the codes carry given the parent's: sum of n_pc * log2(n_p / n_pc).

    Args:
        counts: (..., 6, 6), as `transition_counts` gives them; leading axes are summed.
    """
    return float(_cost(counts).sum())


def encode(codes: Mapping[str, Codes], parent: Mapping[str, Codes]) -> Difference:
    """Code `codes` given `parent`; both have the same layers and shapes."""
    names = sorted(codes)
    counts = np.stack([transition_counts(codes[name], parent[name]) for name in names])
    members = _share_tables(counts)
    tables = np.stack([_frequencies(counts[layers].sum(axis=0)) for layers in members])
    table_of_layer = np.empty(len(names), dtype=np.uint8)
    for table, layers in enumerate(members):
        table_of_layer[layers] = table
    coder = _AnsCoder()
    # The coder is a stack: what is decoded first is encoded last.
    for index in reversed(range(len(names))):
        own, given = codes[names[index]].reshape(-1), parent[names[index]].reshape(-1)
        models = _models(tables[table_of_layer[index]])
        for code in reversed(range(6)):
            coder.encode_reverse(own[given == code].astype(np.int32), models[code])
    return Difference(coder.get_compressed(), tables, table_of_layer)


def decode(difference: Difference, parent: Mapping[str, Codes]) -> dict[str, Codes]:
    """Inverse of `encode`. What it allocates depends on `parent` alone.

    Raises:
        ValueError: the difference does not belong to a parent of these layers and shapes.
    """
    names = sorted(parent)
    _check(difference, len(names))
    words = np.array(difference.words, dtype=np.uint32)
    coder = _AnsCoder(words) if words.size else _AnsCoder()
    models = [_models(table) for table in difference.tables]
    codes: dict[str, Codes] = {}
    for name, table in zip(names, difference.table_of_layer.tolist(), strict=True):
        given = parent[name].reshape(-1)
        own = np.empty_like(given)
        for code in range(6):
            places = given == code
            own[places] = coder.decode(models[table][code], int(places.sum()))
        codes[name] = own.reshape(parent[name].shape)
    if not coder.is_empty():
        raise ValueError("the difference does not end where it should; it is corrupted")
    return codes


def _check(difference: Difference, layers: int) -> None:
    tables, table_of_layer = difference.tables, difference.table_of_layer
    if tables.shape[1:] != TABLE_SHAPE or not 1 <= len(tables) <= MAX_TABLES:
        raise ValueError(f"the difference has tables of shape {tables.shape}")
    if (tables == 0).any() or (tables.sum(axis=-1, dtype=np.uint64) != _TOTAL).any():
        raise ValueError(f"a row of the difference's tables does not sum to {_TOTAL}")
    if table_of_layer.shape != (layers,):
        raise ValueError(
            f"the difference covers {table_of_layer.size} layers, its parent has {layers}"
        )
    if int(table_of_layer.max()) >= len(tables):
        raise ValueError("a layer of the difference names a table that is not there")


def _models(table: npt.NDArray[np.uint32]) -> Sequence[object]:
    # constriction gives symbol i the frequency 1 + (share i of 2**24 - 6): taking one off each
    # makes that exact, so the integers in the file are the ones that the coder uses.
    return [_Categorical(row.astype(np.float64) - 1, perfect=False, lazy=False) for row in table]


def _frequencies(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """Counts (6, 6) to frequencies: rows sum to 2**24, none is zero."""
    counts = counts + np.eye(6, dtype=np.int64) * (counts.sum(axis=1, keepdims=True) == 0)
    total = counts.sum(axis=1, keepdims=True)
    # In Python's integers: a count times 2**24 may leave 64 bits.
    exact = counts.astype(object) * _TOTAL // total.astype(object)
    frequencies = np.maximum(exact.astype(np.int64), 1)
    rows = np.arange(6)
    frequencies[rows, frequencies.argmax(axis=1)] += _TOTAL - frequencies.sum(axis=1)
    fixed: npt.NDArray[np.uint32] = frequencies.astype(np.uint32)
    return fixed


def _cost(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(..., 6, 6) counts -> (...) bits."""
    n = counts.astype(np.float64)
    row = n.sum(axis=-1)
    bits = row * np.log2(np.maximum(row, 1)) - (n * np.log2(np.maximum(n, 1))).sum(axis=-1)
    total: npt.NDArray[np.float64] = bits.sum(axis=-1)
    return total


def _share_tables(counts: npt.NDArray[np.int64]) -> list[list[int]]:
    """Group layers that share a table: merge the best pair while that makes the file smaller.

    Args:
        counts: (L, 6, 6).

    Returns:
        Layer indices of each table; every layer is in one.
    """
    members = [[layer] for layer in range(len(counts))]
    counts = counts.copy()
    cost = _cost(counts)
    gain = np.full((len(counts), len(counts)), -np.inf)
    for i in range(len(counts) - 1):
        gain[i, i + 1 :] = (
            _TABLE_BITS + cost[i] + cost[i + 1 :] - _cost(counts[i] + counts[i + 1 :])
        )
    while len(counts) > 1:
        left, right = (int(i) for i in np.unravel_index(gain.argmax(), gain.shape))
        if gain[left, right] < 0 and len(counts) <= MAX_TABLES:
            break
        members[left] += members.pop(right)
        counts[left] += counts[right]
        counts = np.delete(counts, right, axis=0)
        gain = np.delete(np.delete(gain, right, axis=0), right, axis=1)
        cost = _cost(counts)
        row = _TABLE_BITS + cost[left] + cost - _cost(counts[left] + counts)
        gain[left, left + 1 :] = row[left + 1 :]
        gain[:left, left] = row[:left]
    return [sorted(layers) for layers in members]
