"""Absorbing a transform: an ordinary model directory, with the same answers and other bytes.

Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from maskgen.apply import Change, Weight, rewrite_weights, rewritten_digest
from maskgen.fetch import cache_root, exclusive
from maskgen.format.digests import base_digest
from maskgen.format.weight_files import stored_tensors
from maskgen.transform.architectures import ModelGroups, model_groups
from maskgen.transform.file import Transform, read_transform, write_transform
from maskgen.transform.groups import (
    Groups,
    PermutationGroup,
    Place,
    TransformError,
    check_permutation,
    check_rotation,
    permute,
    rotate,
)

BESIDE = Path("transform") / "transform.safetensors"
"""The transform in the directory that it made. In a folder of its own, because some loaders take
every safetensors file beside config.json for weights."""

Move = tuple[PermutationGroup, Place]


def apply_transform(model_dir: Path, transform: Transform, out: Path) -> str:
    """Write the model that a transform makes of another one, and the transform beside it.

    Returns:
        The new directory's base digest.

    Raises:
        TransformError: the transform belongs to another model or does not fit it, or the result is
            not the one that the transform names.
        FileExistsError: `out` exists.
        ModelDirectoryError: the model's files are missing or malformed.
    """
    changes = transform_changes(model_dir, transform)

    def finish(folder: Path, digest: str) -> None:
        if transform.result_digest not in (None, digest):
            raise TransformError(
                f"the transform should make the model {transform.result_digest}, this machine made"
                f" {digest}; nothing was written"
            )
        (folder / BESIDE).parent.mkdir()
        write_transform(folder / BESIDE, transform.with_result(digest))

    return rewrite_weights(model_dir, out, changes, finish)


def with_result(model_dir: Path, transform: Transform) -> Transform:
    """The transform with the digest of the model that it makes, which is computed and not written.

    Raises:
        TransformError: as `apply_transform`.
    """
    changes = transform_changes(model_dir, transform)
    return transform.with_result(rewritten_digest(model_dir, changes))


def transformed(model_dir: Path, file: Path) -> Path:
    """The model that a transform file makes of a model, as a directory in the cache.

    Raises:
        TransformError: as `apply_transform`, or the file is malformed.
    """
    transform = read_transform(file)
    check_transform_base(transform, model_dir)
    target = cache_root() / "transformed" / str(transform.result_digest)
    if not target.is_dir():
        with exclusive(f"transform-{target.name[:16]}") as scratch:
            if not target.is_dir():  # another process was faster
                apply_transform(model_dir, transform, scratch / "model")
                target.parent.mkdir(parents=True, exist_ok=True)
                (scratch / "model").replace(target)
    return target


def check_transform_base(transform: Transform, model_dir: Path) -> None:
    """Raise TransformError unless the transform was made for the model in this directory."""
    if (digest := base_digest(model_dir)) != transform.base_digest:
        raise TransformError(
            f"the transform belongs to the base model {transform.base_digest[:16]}..., but"
            f" {model_dir} is {digest[:16]}...; use the model it was made for"
        )


def transform_changes(model_dir: Path, transform: Transform) -> dict[str, Change]:
    """What a transform does to every tensor of its model.

    Raises:
        TransformError: as `apply_transform`.
    """
    check_transform_base(transform, model_dir)
    model = model_groups(model_dir)
    check_transform(transform, model)
    shapes = {name: stored.entry.shape for name, stored in stored_tensors(model_dir).items()}
    return {
        tensor: Change(shapes[tensor], _change(transform, steps))
        for tensor, steps in steps_by_tensor(transform, model.groups).items()
    }


def check_transform(transform: Transform, model: ModelGroups) -> None:
    """Raise TransformError unless every array of a transform fits a group of the model."""
    if transform.architecture != model.architecture:
        raise TransformError(
            f"the transform is for a {transform.architecture} model, this is {model.architecture}"
        )
    for name in (*transform.permutations, *transform.rotations):
        if name not in model.groups:
            raise TransformError(f"the model has no group {name:.80}, which the transform changes")
    for name, permutation in transform.permutations.items():
        check_permutation(model.groups[name], permutation)
    for name, rotation in transform.rotations.items():
        check_rotation(model.groups[name], rotation)


def steps_by_tensor(transform: Transform, groups: Groups) -> dict[str, list[Move]]:
    """For every tensor that changes, the groups that change it, in the order of the table."""
    steps: dict[str, list[Move]] = {}
    for name, group in groups.items():
        if name in transform.permutations or name in transform.rotations:
            for place in group.places:
                steps.setdefault(place.tensor, []).append((group, place))
    return steps


def change_weight(weight: Weight, transform: Transform, steps: list[Move]) -> None:
    """Apply a transform's steps to one tensor, in place."""
    for group, place in steps:
        if group.name in transform.rotations:
            rotate(weight, group, place, transform.rotations[group.name])
        if group.name in transform.permutations:
            permute(weight, group, place, transform.permutations[group.name])


def _change(transform: Transform, steps: list[Move]) -> Callable[[Weight], Weight]:
    def change(weight: Weight) -> Weight:
        change_weight(weight, transform, steps)
        return weight

    return change


def inverse(transform: Transform, groups: Groups) -> Transform:
    """The transform of the result that gives the base back, byte for byte.

    Groups that meet in a head are undone in the order in which they are applied: what a head's
    values and query heads become is looked up at the place where the head has gone.

    Args:
        transform: permutations alone, with a known result.
        groups: of the model.

    Raises:
        TransformError: it rotates, which rounding keeps from being undone; or its result is not
            known.
    """
    if transform.rotations:
        raise TransformError("a rotation is rounded to the model's type, and cannot be undone")
    if transform.result_digest is None:
        raise TransformError("the inverse belongs to the result, whose digest is not known yet")
    undone = {}
    for name, permutation in transform.permutations.items():
        back = np.argsort(permutation, axis=1).astype(np.uint16)
        heads = f"{name.rpartition('.')[0]}.kv_heads"
        if groups[name].blocks > 1 and heads in transform.permutations:
            back = back[transform.permutations[heads][0]]
        undone[name] = back
    return Transform(
        undone,
        {},
        base_digest=transform.result_digest,
        architecture=transform.architecture,
        method=f"inverse of {transform.method}",
        seed=transform.seed,
        result_digest=transform.base_digest,
    )
