"""What a mask looks like, and how two masks of one model differ. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskgen.format.difference import conditional_entropy, transition_counts
from maskgen.format.mask import Mask, MaskFileError
from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.placements import Codes
from maskgen.format.swaps import swap_counts, swap_entropy
from maskgen.format.two_four import PLACEMENTS

FEW = 6
"""Up to so many placements of a pattern are told apart; of others, the places in a group."""

_OVERLAP = PLACEMENTS.astype(np.int64) @ PLACEMENTS.T.astype(np.int64)


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """One layer of one mask.

    Attributes:
        name: the layer.
        shape: (N, K) of its weight.
        density: share of kept weights, counted on the expanded mask: N/M for any N:M mask.
        places: for each of the M places in a group, the share of groups that keep it.
        placements: share of each placement; empty where the pattern has more than `FEW`.
    """

    name: str
    shape: tuple[int, int]
    density: float
    places: tuple[float, ...]
    placements: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LayerComparison:
    """One layer, or all layers together, of one mask beside another's.

    Attributes:
        name: the layer, or `all`.
        pattern: of both masks.
        groups: of the layer.
        changed: groups whose placement differs.
        agreed: weights that both keep.
        entropy: bits that the mask's codes carry given the other's: for 2:4 those of the
            transitions between placements, for other patterns those of `maskgen.format.swaps`.
    """

    name: str
    pattern: Pattern
    groups: int
    changed: int
    agreed: int
    entropy: float

    @property
    def changed_share(self) -> float:
        """Share of groups that differ, 0 to 1."""
        return self.changed / self.groups

    @property
    def agreement(self) -> float:
        """Share of the weights kept by one that the other keeps too; random masks agree in N/M."""
        return self.agreed / (self.groups * self.pattern.n)

    @property
    def bits_per_weight(self) -> float:
        """Conditional entropy per weight, kept or not."""
        return self.entropy / (self.groups * self.pattern.m)


def summarise_layers(mask: Mask) -> list[LayerSummary]:
    """Every layer of a mask, decoder layer by decoder layer."""
    rows = []
    for name in ordered(mask):
        codes, keep = mask.codes[name], mask.keep(name)
        shares: Sequence[float] = ()
        if (count := mask.pattern.placements) <= FEW:
            shares = (np.bincount(codes.reshape(-1), minlength=count) / codes.size).tolist()
        places = keep.reshape(-1, mask.pattern.m).mean(axis=0).tolist()
        density = float(keep.mean())
        rows.append(LayerSummary(name, mask.shapes[name], density, tuple(places), tuple(shares)))
    return rows


def check_comparable(mask: Mask, other: Mask) -> None:
    """Raise MaskFileError unless both are of one model, one pattern and the same layers."""
    if mask.base_digest != other.base_digest:
        raise MaskFileError(
            f"the masks are for different models: {mask.base_digest[:16]}... "
            f"and {other.base_digest[:16]}..."
        )
    if mask.pattern != other.pattern:
        raise MaskFileError(
            f"the masks have different patterns: {mask.pattern} and {other.pattern}"
        )
    if mask.shapes != other.shapes:
        alone = sorted(mask.shapes.keys() ^ other.shapes.keys())
        what = f"only one of them lists {alone[0]}" if alone else "a layer's shapes differ"
        raise MaskFileError(f"the masks do not list the same layers: {what}")


def compare(mask: Mask, other: Mask) -> tuple[list[LayerComparison], LayerComparison]:
    """Per layer and in all, how `mask` differs from `other`.

    Raises:
        MaskFileError: see `check_comparable`.
    """
    check_comparable(mask, other)
    rows = [
        _compared(name, mask.codes[name], other.codes[name], mask.pattern) for name in ordered(mask)
    ]
    total = LayerComparison(
        "all",
        mask.pattern,
        groups=sum(row.groups for row in rows),
        changed=sum(row.changed for row in rows),
        agreed=sum(row.agreed for row in rows),
        entropy=sum(row.entropy for row in rows),
    )
    return rows, total


def ordered(mask: Mask) -> list[str]:
    """Layer names, decoder layer by decoder layer (numbers in names count as numbers)."""
    return sorted(mask.codes, key=lambda name: [_key(part) for part in name.split(".")])


def _key(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdigit() else (-1, part)


def _compared(name: str, codes: Codes, other: Codes, pattern: Pattern) -> LayerComparison:
    if pattern == TWO_FOUR:
        counts = transition_counts(codes, other)
        changed = codes.size - int(np.trace(counts))
        agreed = int((counts * _OVERLAP).sum())
        return LayerComparison(
            name, pattern, codes.size, changed, agreed, conditional_entropy(counts)
        )
    swaps = swap_counts(codes, other, pattern)
    changed = int(swaps[1:].sum())
    agreed = codes.size * pattern.n - int((swaps * np.arange(len(swaps))).sum())
    return LayerComparison(name, pattern, codes.size, changed, agreed, swap_entropy(swaps, pattern))
