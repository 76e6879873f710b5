"""What building an engine directory has in common for every target."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engines.directory.checkpoint import Checkpoint
from engines.directory.files import list_files, record_files
from engines.directory.manifest import (
    DENSE_ARM,
    QUANTISED_VALUES,
    LayoutRecord,
    Manifest,
    MaskRecord,
    QuantisationRecord,
    Target,
    write_manifest,
)
from engines.directory.progress import BuildProgress, silent
from engines.directory.tokenizer_check import tokenizer_note
from engines.errors import EngineDirectoryError, MaskError
from engines.mask_rules import MaskedLayers, check_fits, check_name
from engines.quantisation.options import BF16_VALUES, ValueOptions
from engines.text import TextCodec
from engines.version import own_version
from maskgen.format.digests import base_digest
from maskgen.format.json_file import write_json
from maskgen.format.mask import Mask
from maskgen.format.mask_file import read_mask, write_mask
from maskgen.format.model_directory import CONFIG_FILE
from maskgen.format.text_files import text_files

StorageChoice = Callable[[float], Literal["patch", "copy"]]
"""How an engine keeps a mask that changes this share of the groups."""

MASK_FOLDER = "masks"


@dataclass(frozen=True)
class BuildRequest:
    """What to build; every target's builder takes one.

    Attributes:
        model: Hugging Face model directory.
        model_name: what requests will call the model.
        masks: name -> mask file, the first being the default; empty for a dense engine.
        out: the directory to make; it appears when it is complete.
        with_dense: put the dense model beside the masks.
        sealed: leave out the values that the default mask drops.
        overwrite: replace an engine directory that is in the way.
        values: types of the weights.
        values_file: int8 or int4 values made elsewhere, whose type, block and minima count then.
        progress: told about every layer.
        note: told what the user should know about the outcome, a line at a time.
    """

    model: Path
    model_name: str
    masks: Mapping[str, Path]
    out: Path
    with_dense: bool = False
    sealed: bool = False
    overwrite: bool = False
    values: ValueOptions = BF16_VALUES
    values_file: Path | None = None
    progress: BuildProgress = silent
    note: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class BuildInputs:
    """A request's files, opened and checked against each other.

    Attributes:
        checkpoint: the model.
        base_digest: digest of the model's tensors.
        masks: by name; empty for a dense engine.
        default_mask: name of the default mask.
    """

    checkpoint: Checkpoint
    base_digest: str
    masks: dict[str, Mask]
    default_mask: str | None


def open_inputs(request: BuildRequest, target: Target) -> BuildInputs:
    """Open the model and masks of `request` and check that they belong together.

    Args:
        request: what to build.
        target: what is to run it.

    Raises:
        EngineDirectoryError: the model directory is unreadable, or lacks a tokenizer; several
            masks, or the dense model, are wanted in a sealed directory; or the dense model beside
            no mask.
        MaskFileError: a mask file is unreadable.
        MaskError: the target does not run a mask's pattern; a mask belongs to another model, or
            has another pattern than the default mask; or it lists layers that the model has not, or
            with other shapes, or other layers than the default mask does.
    """
    for name in request.masks:
        check_name(name)
    if request.sealed and len(request.masks) > 1:
        raise EngineDirectoryError(
            f"a sealed directory holds one mask, {len(request.masks)} were given: the others take"
            " their weights from what sealing leaves out; give one mask, or do not seal"
        )
    if request.with_dense and request.sealed:
        raise EngineDirectoryError(
            "a sealed directory has no room for the dense model: sealing leaves out what the mask"
            " drops; do not seal"
        )
    if request.with_dense and not request.masks:
        raise EngineDirectoryError(
            "without a mask the directory is that of the dense model already; leave out the dense"
            " model, or give a mask"
        )
    checkpoint = Checkpoint(request.model)
    request.note(tokenizer_note(request.model, TextCodec(request.model)))
    digest = base_digest(request.model)
    masks = {name: read_mask(path) for name, path in request.masks.items()}
    default = next(iter(masks), None)
    for name, mask in masks.items():
        layers = None if name == default else MaskedLayers.of(masks[str(default)])
        check_fits(name, mask, target, digest, layers, request.values.values)
        check_layers(name, mask, checkpoint)
    return BuildInputs(checkpoint, digest, masks, default)


def check_layers(name: str, mask: Mask, checkpoint: Checkpoint) -> None:
    """Raise MaskError unless the model has the layers of `mask`, in its shapes."""
    for layer, codes in mask.codes.items():
        weight = f"{layer}.weight"
        if weight not in checkpoint:
            raise MaskError(f"mask {name!r} lists {layer}, which the model has not")
        shape = checkpoint.spec(weight).shape
        size = mask.pattern.m
        if len(shape) != 2 or shape[1] % size:
            raise MaskError(
                f"{layer} has shape {shape}; {mask.pattern} needs a width that is a multiple of"
                f" {size}"
            )
        if codes.shape != (shape[0], shape[1] // size):
            raise MaskError(
                f"mask {name!r}: {layer} has codes {codes.shape}, the weights {shape} need"
                f" {(shape[0], shape[1] // size)}"
            )


def changed_share(mask: Mask, base: Mask) -> float:
    """Share of the groups in which two masks over the same layers differ."""
    changed = sum(int(np.count_nonzero(mask.codes[k] != base.codes[k])) for k in base.codes)
    return changed / sum(codes.size for codes in base.codes.values())


def copy_text_files(model: Path, directory: Path) -> None:
    """Copy tokenizer, chat templates and configuration files."""
    for path in text_files(model):
        copy = directory / path.relative_to(model)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)


def store_masks(
    inputs: BuildInputs, directory: Path, storage: StorageChoice | None = None
) -> tuple[MaskRecord, ...]:
    """Write every mask into the new directory; their manifest records."""
    if inputs.default_mask is None:
        return ()
    base = inputs.masks[inputs.default_mask]
    (directory / MASK_FOLDER).mkdir()
    return tuple(
        store_mask(directory, name, mask, base, storage) for name, mask in inputs.masks.items()
    )


def store_mask(
    directory: Path, name: str, mask: Mask, base: Mask, storage: StorageChoice | None = None
) -> MaskRecord:
    """Write one mask into an engine directory, readable by itself; its manifest record.

    Args:
        directory: has a folder for masks.
        name: what requests will call it.
        mask: its parent, if it has one, stays behind: the whole mask is written.
        base: the directory's default mask.
        storage: decides how the engine will keep it; None where the engine decides.
    """
    share = changed_share(mask, base)
    kept = None if storage is None else "base" if mask is base else storage(share)
    file = f"{MASK_FOLDER}/{name}.safetensors"
    write_mask(directory / file, replace(mask, parent_digest=None))
    return MaskRecord(
        name=name,
        digest=mask.digest,
        domain=mask.domain,
        method=mask.method,
        layers=len(mask.codes),
        file=file,
        changed_share=share,
        storage=kept,
    )


def finish_directory(
    request: BuildRequest,
    inputs: BuildInputs,
    directory: Path,
    target: Target,
    layout: LayoutRecord | None,
    *,
    config: Mapping[str, Any] | None = None,
    quantisation: QuantisationRecord | None = None,
    storage: StorageChoice | None = None,
    served: Callable[[Path], list[str]] = list_files,
) -> Manifest:
    """Add text files, masks and the manifest: the last step of every builder.

    Args:
        config: takes the place of the model's own `config.json`, which is written as
            `engines.directory.checkpoint.Checkpoint` understands it.
        quantisation: how int8 and int4 values were made.
        storage: as for `store_mask`.
        served: names the files of the directory that serving needs; their content is recorded.

    Raises:
        EngineDirectoryError: a field is not acceptable, such as the name of a mask.
    """
    copy_text_files(request.model, directory)
    written = inputs.checkpoint.config if config is None else config
    write_json(directory / CONFIG_FILE, written)
    try:
        manifest = Manifest(
            target=target,
            model=request.model_name,
            base_digest=inputs.base_digest,
            masks=store_masks(inputs, directory, storage),
            default_mask=inputs.default_mask,
            required_features=(
                *(() if quantisation is None else (QUANTISED_VALUES,)),
                *((DENSE_ARM,) if request.with_dense else ()),
            ),
            layout=layout,
            quantisation=quantisation,
            dense=request.with_dense,
            sealed=request.sealed,
            files=record_files(directory, served(directory), request.progress),
            created_by=own_version(),
        )
    except ValueError as error:
        raise EngineDirectoryError(f"cannot describe this engine: {error}") from error
    return write_manifest(directory, manifest)
