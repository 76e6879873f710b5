"""Random structures for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maskgen.format.change_file import ChangeRecord
from maskgen.format.digests import base_digest
from maskgen.structure.file import HEADS, Factors, Structure
from maskgen.structure.removal import unit_groups
from maskgen.transform.architectures import model_groups


def random_structure(
    directory: Path, channels: int, heads: int, *, scale: bool = False, rank: int = 0
) -> Structure:
    """Random units of every layer; on demand with random scales and low-rank differences."""
    model, rng = model_groups(directory), np.random.default_rng(0)
    kept, scales = {}, {}
    low_rank: dict[str, Factors] = {}
    for name, group in unit_groups(model.groups).items():
        count = heads if name.endswith(HEADS) else channels
        kept[name] = np.sort(rng.permutation(group.size)[:count]).astype(np.uint16)
        if scale:
            scales[name] = rng.uniform(0.5, 1.5, count).astype(np.float32)
        for place in group.places if rank else ():
            if place.tensor.endswith(".weight") and place.axis == 0:
                width = _columns(directory, place.tensor)
                rows = group.length(place)
                first = rng.standard_normal((rank, width)) / width**0.5
                second = rng.standard_normal((rows, rank)) / 4
                module = place.tensor.removesuffix(".weight")
                low_rank[module] = (first.astype(np.float32), second.astype(np.float32))
    record = ChangeRecord(base_digest(directory), model.architecture, "random", 0)
    return Structure(kept, scales, low_rank, record)


def _columns(directory: Path, tensor: str) -> int:
    from maskgen.format.weight_files import stored_tensors

    return stored_tensors(directory)[tensor].entry.shape[1]
