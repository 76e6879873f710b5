"""Removing units: a smaller dense model directory, which every loader takes.

Exact: the model that is left gives what the whole one gives with the other units multiplied by
zero, up to the order of summation. Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskgen.apply import Change, Weight, rewrite_weights, rewritten_digest
from maskgen.format.atomic_file import write_text
from maskgen.format.digests import base_digest
from maskgen.format.model_directory import CONFIG_FILE, read_model_config
from maskgen.format.weight_files import stored_tensors
from maskgen.structure.file import FEED_FORWARD, HEADS, Factors, Structure, write_structure
from maskgen.structure.width import LayerShape, StructureError, Width
from maskgen.transform.architectures import ModelGroups, model_groups
from maskgen.transform.groups import Groups, PermutationGroup, Place

BESIDE = Path("structure") / "structure.safetensors"
"""The structure in the directory that it made. In a folder of its own, because some loaders take
every safetensors file beside config.json for weights."""


def unit_groups(groups: Groups) -> dict[str, PermutationGroup]:
    """The groups of a model whose channels can be removed: units of one block each."""
    return {
        name: group
        for name, group in groups.items()
        if name.rpartition(".")[2] in (FEED_FORWARD, HEADS)
    }


def apply_structure(model_dir: Path, structure: Structure, out: Path) -> str:
    """Write the model that is left, and the structure beside it.

    Returns:
        The new directory's base digest.

    Raises:
        StructureError: the structure belongs to another model or does not fit it, or the result is
            not the one that it names.
        TransformError: the model's architecture is not in the table of groups.
        FileExistsError: `out` exists.
        ModelDirectoryError: the model's files are missing or malformed.
    """
    changes = structure_changes(model_dir, structure)
    config = shrunk_config(read_model_config(model_dir), structure.width)

    def finish(folder: Path, digest: str) -> None:
        if structure.record.result_digest not in (None, digest):
            raise StructureError(
                f"the structure should make the model {structure.record.result_digest}, this"
                f" machine made {digest}; nothing was written"
            )
        write_text(folder / CONFIG_FILE, f"{json.dumps(config, indent=2)}\n")
        (folder / BESIDE).parent.mkdir()
        write_structure(folder / BESIDE, structure.with_result(digest))

    return rewrite_weights(model_dir, out, changes, finish)


def with_result(model_dir: Path, structure: Structure) -> Structure:
    """The structure with the digest of the model that it makes, which is computed, not written.

    Raises:
        StructureError, TransformError: as `apply_structure`.
    """
    changes = structure_changes(model_dir, structure)
    return structure.with_result(rewritten_digest(model_dir, changes))


def shrunk_config(config: dict[str, Any], width: Width) -> dict[str, Any]:
    """config.json of the model that is left.

    `head_dim` is always stated: without it loaders take the hidden size over the number of heads.
    """
    shape = LayerShape.of(config)
    return {
        **config,
        "intermediate_size": width.intermediate,
        "num_attention_heads": width.key_value_heads * shape.repeat,
        "num_key_value_heads": width.key_value_heads,
        "head_dim": shape.head,
    }


def structure_changes(model_dir: Path, structure: Structure) -> dict[str, Change]:
    """What a structure does to every tensor of its model.

    Raises:
        StructureError, TransformError: as `apply_structure`.
    """
    if (digest := base_digest(model_dir)) != structure.record.base_digest:
        raise StructureError(
            f"the structure belongs to the base model {structure.record.base_digest[:16]}..., but"
            f" {model_dir} is {digest[:16]}...; use the model it was made for"
        )
    model = model_groups(model_dir)
    check_structure(structure, model)
    LayerShape.of(read_model_config(model_dir)).check(structure.width)
    shapes = {name: stored.entry.shape for name, stored in stored_tensors(model_dir).items()}
    changes = {}
    for name, group in unit_groups(model.groups).items():
        for place in group.places:
            old = shapes[place.tensor]
            new = list(old)
            new[place.axis] = len(structure.kept[name]) * place.unit
            changes[place.tensor] = Change(old, _cut(structure, name, group, place), tuple(new))
    for module, (first, second) in structure.low_rank.items():
        change = changes.get(f"{module}.weight")
        fits = change is not None and change.shape == (len(second), first.shape[1])
        if not fits or len(first) != second.shape[1]:
            raise StructureError(
                f"a low-rank difference of {list(second.shape)} times {list(first.shape)} does not"
                f" fit {module:.80}"
            )
    return changes


def check_structure(structure: Structure, model: ModelGroups) -> None:
    """Raise StructureError unless every array of a structure fits a group of the model."""
    if structure.record.architecture != model.architecture:
        raise StructureError(
            f"the structure is for a {structure.record.architecture} model, this is"
            f" {model.architecture}"
        )
    groups = unit_groups(model.groups)
    if unlike := groups.keys() ^ structure.kept.keys():
        raise StructureError(
            f"structure and model differ in {min(unlike):.80}: a structure lists what is kept of"
            " every layer"
        )
    for name, kept in structure.kept.items():
        size = groups[name].size
        wide = kept.astype(np.int64)
        if not len(wide) or wide[-1] >= size or (np.diff(wide) <= 0).any():
            raise StructureError(f"{name}: what is kept is not a rising list of units below {size}")
    for name, scale in structure.scales.items():
        if name not in structure.kept or scale.shape != structure.kept[name].shape:
            raise StructureError(f"{name:.80}: its scales are not one for every unit that is kept")
        if not np.isfinite(scale).all():
            raise StructureError(f"{name}: a scale is not a finite number")


def channels_of(kept: npt.NDArray[Any], place: Place) -> npt.NDArray[np.intp]:
    """(kept * unit,) the positions of kept units on a place's axis."""
    first = kept.astype(np.intp)[:, None] * place.unit
    return (first + np.arange(place.unit, dtype=np.intp)).reshape(-1)


def _cut(
    structure: Structure, name: str, group: PermutationGroup, place: Place
) -> Callable[[Weight], Weight]:
    channels = channels_of(structure.kept[name], place)
    factors = structure.low_rank.get(place.tensor.removesuffix(".weight"))
    scale = structure.scales.get(name) if place in group.readers else None

    def change(weight: Weight) -> Weight:
        whole = weight if factors is None else _plus(weight, factors)
        left = np.take(whole, channels, axis=place.axis)
        if scale is not None:
            left = left.astype(np.float64) * np.repeat(scale.astype(np.float64), place.unit)
        return left.astype(weight.dtype)

    return change


def _plus(weight: Weight, factors: Factors) -> Weight:
    """A weight and its low-rank difference, in fp64.

    Rank by rank, so that every machine gets the same bits; a BLAS would not promise that.
    """
    first, second = (factor.astype(np.float64) for factor in factors)
    total = weight.astype(np.float64)
    for rank in range(len(first)):
        total += second[:, rank, None] * first[rank]
    return total
