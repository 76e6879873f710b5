"""Random transforms for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maskgen.format.digests import base_digest
from maskgen.transform.architectures import model_groups
from maskgen.transform.file import Transform


def random_transform(directory: Path, seed: int = 0, *, rotate: bool = False) -> Transform:
    """A random order in every group at once, and, on demand, random rotations."""
    model, rng = model_groups(directory), np.random.default_rng(seed)
    permutations, rotations = {}, {}
    for name, group in model.groups.items():
        order = np.tile(np.arange(group.size, dtype=np.uint16), (group.blocks, 1))
        permutations[name] = rng.permuted(order, axis=1)
        if rotate and group.rotatable:
            gaussian = rng.standard_normal((group.blocks, group.size, group.size))
            rotations[name] = np.linalg.qr(gaussian)[0].astype(np.float32)
    digest = base_digest(directory)
    return Transform(permutations, rotations, digest, model.architecture, "random", seed)
