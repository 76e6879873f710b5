"""Carrying a mask over to what a transform made of its base.

A mask that keeps N of M neighbours stays one under a new order of rows. A new order of columns puts
other weights side by side: some groups then hold too many of the kept weights, others too few.
There, what was kept goes first, and the largest weights fill up. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from maskgen.apply import read_weight
from maskgen.format.mask import Mask, MaskFileError
from maskgen.format.placements import keep_from_codes, project
from maskgen.format.weight_files import stored_tensors
from maskgen.transform.absorb import steps_by_tensor
from maskgen.transform.architectures import model_groups
from maskgen.transform.file import Transform
from maskgen.transform.groups import TransformError, permute


@dataclass(frozen=True, slots=True)
class Carried:
    """A mask of the transformed model.

    Attributes:
        mask: belongs to the transform's result.
        kept: share of the old mask's kept weights that it keeps, over the layers that no rotation
            touches.
        rotated: layers that a rotation changed: its weights are new ones, and the largest are kept.
    """

    mask: Mask
    kept: float
    rotated: list[str]


def carry(mask: Mask, transform: Transform, result: Path) -> Carried:
    """A mask of the transform's base as a mask of its result.

    Args:
        mask: of the base.
        transform: of the base.
        result: the directory of the transformed model.

    Raises:
        MaskFileError: the mask belongs to another model, or has a layer that this one has not.
        TransformError: the transform's result is not known.
        ModelDirectoryError: the directory is malformed.
    """
    if mask.base_digest != transform.base_digest:
        raise MaskFileError(
            f"the mask belongs to the base model {mask.base_digest[:16]}..., the transform to"
            f" {transform.base_digest[:16]}...; give masks of the model that is transformed"
        )
    if transform.result_digest is None:
        raise TransformError("a mask is carried over to a result whose digest is known")
    steps, stored = steps_by_tensor(transform, model_groups(result).groups), stored_tensors(result)
    codes, rotated, before, after = {}, [], 0, 0
    for name, shape in mask.shapes.items():
        tensor = f"{name}.weight"
        if tensor not in stored:
            raise MaskFileError(f"the mask lists {name}, which is no layer of the model")
        magnitude = np.abs(read_weight(tensor, stored[tensor], shape).astype(np.float64))
        if any(group.name in transform.rotations for group, _ in steps.get(tensor, [])):
            codes[name] = project(magnitude, mask.pattern)
            rotated.append(name)
            continue
        keep = mask.keep(name)
        moved = keep.view(np.uint8).copy()
        for group, place in steps.get(tensor, []):
            permute(moved, group, place, transform.permutations[group.name])
        codes[name] = project(_kept_first(moved, magnitude), mask.pattern)
        before += int(keep.sum())
        after += int((keep_from_codes(codes[name], mask.pattern) & moved.view(np.bool_)).sum())
    carried = replace(
        mask,
        codes=codes,
        base_digest=transform.result_digest,
        method=f"{mask.method}, carried over",
        parent_digest=None,
    )
    return Carried(carried, after / before if before else 0.0, rotated)


def _kept_first(
    kept: npt.NDArray[np.uint8], magnitude: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Scores: kept weights above all others, larger weights first among either."""
    scores: npt.NDArray[np.float64] = kept + magnitude / (2 * magnitude.max() + 1e-300)
    return scores
