"""Structure files: which units of every decoder layer stay, small, the same bytes for the same
content.

A unit is a feed-forward channel (group `layers.N.mlp`), or a key-value head with the query heads
that read it (`layers.N.kv_heads`). A structure file has a tensor `GROUP.kept` (uint16, ascending)
for every group, `GROUP.scale` (float32) for what kept units are multiplied by, and `MODULE.first`
and `MODULE.second` (float32) for a low-rank difference second @ first that is added to a linear's
weight before anything is removed. docs/formats.md has the layout. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskgen.format.change_file import (
    ChangeFormat,
    ChangeRecord,
    content_digest,
    read_change,
    write_change,
)
from maskgen.structure.width import StructureError, Width

FEED_FORWARD, HEADS = "mlp", "kv_heads"
"""What `layers.N.` is followed by in the name of a group."""

SCALE, LOW_RANK = "scale", "low_rank"
"""Required by a file that scales units, or changes weights by a low-rank difference."""

Factors = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""(rank, K) and (N, rank): their product, the second times the first, is added to a weight."""

_FORM = ChangeFormat(
    "structure",
    {"kept": ("U16", 1), "scale": ("F32", 1), "first": ("F32", 2), "second": ("F32", 2)},
    (SCALE, LOW_RANK),
    StructureError,
)


@dataclass(frozen=True, eq=False)
class Structure:
    """Which units of one base model stay.

    Attributes:
        kept: group name -> (kept,) uint16 units, ascending; the same number in every layer.
        scales: group name -> (kept,) float32, what those units are multiplied by.
        low_rank: module name -> factors of what is added to its weight.
        record: which models it belongs to, and where it comes from.
    """

    kept: Mapping[str, npt.NDArray[np.uint16]]
    scales: Mapping[str, npt.NDArray[np.float32]]
    low_rank: Mapping[str, Factors]
    record: ChangeRecord

    @property
    def digest(self) -> str:
        """SHA-256 of base digest and all arrays."""
        return content_digest(self.record.base_digest, self.tensors())

    @property
    def width(self) -> Width:
        """Of every layer."""
        sizes = {name.rpartition(".")[2]: len(kept) for name, kept in self.kept.items()}
        return Width(sizes[FEED_FORWARD], sizes[HEADS])

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """All arrays, named as in the file."""
        named: dict[str, npt.NDArray[Any]] = {f"{n}.kept": kept for n, kept in self.kept.items()}
        named |= {f"{name}.scale": scale for name, scale in self.scales.items()}
        for name, (first, second) in self.low_rank.items():
            named |= {f"{name}.first": first, f"{name}.second": second}
        return named

    def with_result(self, digest: str) -> Structure:
        """The same, with the digest of the model that it makes."""
        return replace(self, record=replace(self.record, result_digest=digest))


def write_structure(path: Path, structure: Structure) -> None:
    """Write a structure file atomically.

    Raises:
        StructureError: the digest of its result is not known yet.
    """
    required = [SCALE] if structure.scales else []
    required += [LOW_RANK] if structure.low_rank else []
    write_change(path, _FORM, structure.record, structure.tensors(), required)


def read_structure(path: Path) -> Structure:
    """Read a structure file, checking every field and the digest of what was read.

    Raises:
        StructureError: the file is truncated, corrupted, foreign, or newer than this reader; or
            layers differ in width.
        OSError: the file cannot be opened.
    """
    record, arrays = read_change(path, _FORM)
    found: dict[str, dict[str, Any]] = {kind: {} for kind in _FORM.kinds}
    for name, array in arrays.items():
        group, _, kind = name.rpartition(".")
        found[kind][group] = array
    if lone := found["first"].keys() ^ found["second"].keys():
        raise StructureError(f"{path}: {min(lone):.80} has one of the two factors of a difference")
    for kind in (FEED_FORWARD, HEADS):
        widths = {len(k) for name, k in found["kept"].items() if name.endswith(f".{kind}")}
        if len(widths) != 1:
            raise StructureError(
                f"{path}: every layer has to keep the same number of {kind} units, the file has"
                f" {sorted(widths) or 'none'}"
            )
    factors = {name: (first, found["second"][name]) for name, first in found["first"].items()}
    return Structure(found["kept"], found["scale"], factors, record)
