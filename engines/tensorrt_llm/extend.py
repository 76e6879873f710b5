"""Adds masks to a TensorRT-LLM directory: their checkpoints, and steps in `build.sh`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping as MappingType
from pathlib import Path

from engines.directory.build import BuildRequest, open_inputs, store_mask
from engines.errors import EngineDirectoryError, MaskError
from engines.mask_rules import MaskedLayers, check_fits, check_name
from engines.tensorrt_llm.config import convertible_decoder
from engines.tensorrt_llm.directory import (
    check_masked,
    engine_record,
    write_masked,
)
from engines.tensorrt_llm.record import CHECKPOINTS, read_record, write_record
from engines.tensorrt_llm.script import write_script
from maskgen.format.mask_file import read_mask
from maskgen.format.staging import remove_stale, staging


def add_masks(directory: Path, model: Path, masks: MappingType[str, Path]) -> None:
    """Write everything that `build.sh` needs to add `masks`.

    Args:
        directory: a TensorRT-LLM engine directory with masks.
        model: the model that it was made from.
        masks: name -> mask file.

    Raises:
        EngineDirectoryError: the directory has no masks, or the model is another one.
        MaskError: a name is taken, or a mask does not fit the model or the directory.
    """
    manifest, record = read_record(directory)
    if manifest.default_mask is None:
        raise EngineDirectoryError(f"{directory} was built without masks; build it anew with them")
    if not masks:
        raise EngineDirectoryError("no masks to add; give --mask NAME=FILE")
    for name in masks:
        check_name(name)
        if name in record.engines:
            raise MaskError(f"{directory} has a mask named {name!r} already")
    inputs = open_inputs(BuildRequest(model, manifest.model, masks, directory), "tensorrt-llm")
    if inputs.base_digest != manifest.base_digest:
        raise EngineDirectoryError(
            f"{directory} was made from the model with base digest {manifest.base_digest[:12]}...,"
            f" {model} has {inputs.base_digest[:12]}..."
        )
    decoder = convertible_decoder(inputs.checkpoint.config)
    default = read_mask(directory / manifest.mask(manifest.default_mask).file)
    engines, records = dict(record.engines), list(manifest.masks)
    remove_stale(directory)
    for name, mask in inputs.masks.items():
        check_fits(name, mask, manifest.target, manifest.base_digest, MaskedLayers.of(default))
        with staging(directory, "adding") as temporary:
            folder = temporary / name
            request = BuildRequest(model, manifest.model, masks, directory)
            write_masked(request, inputs, name, mask, folder, record.mapping, record.dtype)
            engines[name] = engine_record(name, check_masked(folder, mask, decoder, record.mapping))
            # What an extension that never finished left behind has this name, too.
            shutil.rmtree(directory / CHECKPOINTS / name, ignore_errors=True)
            folder.replace(directory / CHECKPOINTS / name)
        records.append(store_mask(directory, name, mask, default))
    record = record.model_copy(update={"engines": engines})
    write_script(directory, record)
    write_record(directory, manifest.model_copy(update={"masks": tuple(records)}), record)
