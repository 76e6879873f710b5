"""One transform for two that follow each other."""

from __future__ import annotations

import numpy as np

from maskgen.transform.file import Transform
from maskgen.transform.groups import Permutation, Rotation, TransformError


def compose(first: Transform, second: Transform) -> Transform:
    """The transform of the first one's base that does what both do, without a known result.

    Rotations are multiplied before anything is rounded, so where both rotate a group, the result's
    last bits are not those of two steps.

    Args:
        first: with a known result.
        second: of that result.

    Raises:
        TransformError: the second does not belong to the first one's result, or the first moves
            whole heads, inside which the second would name others.
    """
    if second.base_digest != first.result_digest:
        raise TransformError(
            f"the second transform is of {second.base_digest[:16]}..., the first makes"
            f" {str(first.result_digest)[:16]}..."
        )
    if heads := [name for name in first.permutations if name.endswith("_heads")]:
        raise TransformError(f"no transform can follow one that moves whole heads ({heads[0]})")
    rotations: dict[str, Rotation] = dict(first.rotations)
    for name, rotation in second.rotations.items():
        turned = _before(first.permutations.get(name), rotation)
        if name in first.rotations:
            product = first.rotations[name].astype(np.float64) @ turned.astype(np.float64)
            turned = product.astype(np.float32)
        rotations[name] = turned
    permutations: dict[str, Permutation] = dict(first.permutations)
    for name, permutation in second.permutations.items():
        earlier = first.permutations.get(name)
        permutations[name] = (
            permutation
            if earlier is None
            else np.take_along_axis(earlier, permutation.astype(np.intp), axis=1)
        )
    return Transform(
        permutations,
        rotations,
        base_digest=first.base_digest,
        architecture=first.architecture,
        method=f"{first.method} + {second.method}",
        seed=second.seed,
        calibration_digest=second.calibration_digest,
    )


def _before(permutation: Permutation | None, rotation: Rotation) -> Rotation:
    """The rotation that does before a permutation what another one does after it."""
    if permutation is None:
        return rotation
    moved = np.empty_like(rotation)
    for block, (order, matrix) in enumerate(zip(permutation, rotation, strict=True)):
        moved[block][np.ix_(order, order)] = matrix
    return moved
