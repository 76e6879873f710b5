"""What a mask looks like, and how two masks of one model differ. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskgen.format.difference import conditional_entropy, transition_counts
from maskgen.format.mask_file import Mask, MaskFileError
from maskgen.format.placements import GROUP, PLACEMENTS, keep_from_codes

_OVERLAP = PLACEMENTS.astype(np.int64) @ PLACEMENTS.T.astype(np.int64)


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """One layer of one mask.

    Attributes:
        name: the layer.
        shape: (N, K) of its weight.
        density: share of kept weights, counted on the expanded mask: 0.5 for any 2:4 mask.
        placements: share of each of the six placements.
    """

    name: str
    shape: tuple[int, int]
    density: float
    placements: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LayerComparison:
    """One layer, or all layers together, of one mask beside another's.

    Attributes:
        name: the layer, or `all`.
        groups: groups of four weights.
        changed: groups whose placement differs.
        agreement: share of the weights kept by one that the other keeps too; two random masks
            agree in 0.5.
        entropy: bits that the mask's codes carry given the other's.
    """

    name: str
    groups: int
    changed: int
    agreement: float
    entropy: float

    @property
    def changed_share(self) -> float:
        """Share of groups that differ, 0 to 1."""
        return self.changed / self.groups

    @property
    def bits_per_weight(self) -> float:
        """Conditional entropy per weight, kept or not."""
        return self.entropy / (self.groups * GROUP)


def summarise_layers(mask: Mask) -> list[LayerSummary]:
    """Every layer of a mask, decoder layer by decoder layer."""
    rows = []
    for name in ordered(mask):
        codes = mask.codes[name]
        shares = np.bincount(codes.reshape(-1), minlength=6) / codes.size
        density = float(keep_from_codes(codes).mean())
        rows.append(LayerSummary(name, mask.shapes[name], density, tuple(shares.tolist())))
    return rows


def compare(mask: Mask, other: Mask) -> tuple[list[LayerComparison], LayerComparison]:
    """Per layer and in all, how `mask` differs from `other`.

    Raises:
        MaskFileError: they are for different models, or list other layers.
    """
    if mask.base_digest != other.base_digest:
        raise MaskFileError(
            f"the masks are for different models: {mask.base_digest[:16]}... "
            f"and {other.base_digest[:16]}..."
        )
    if mask.shapes != other.shapes:
        alone = sorted(mask.shapes.keys() ^ other.shapes.keys())
        what = f"only one of them lists {alone[0]}" if alone else "a layer's shapes differ"
        raise MaskFileError(f"the masks do not list the same layers: {what}")
    rows = []
    every = np.zeros((6, 6), dtype=np.int64)
    entropy = 0.0
    for name in ordered(mask):
        counts = transition_counts(mask.codes[name], other.codes[name])
        rows.append(_difference(name, counts, conditional_entropy(counts)))
        every += counts
        entropy += rows[-1].entropy
    return rows, _difference("all", every, entropy)


def ordered(mask: Mask) -> list[str]:
    """Layer names, decoder layer by decoder layer (numbers in names count as numbers)."""
    return sorted(mask.codes, key=lambda name: [_key(part) for part in name.split(".")])


def _key(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdigit() else (-1, part)


def _difference(name: str, counts: npt.NDArray[np.int64], entropy: float) -> LayerComparison:
    groups = int(counts.sum())
    return LayerComparison(
        name=name,
        groups=groups,
        changed=groups - int(np.trace(counts)),
        agreement=float((counts * _OVERLAP).sum() / (2 * groups)),
        entropy=entropy,
    )
