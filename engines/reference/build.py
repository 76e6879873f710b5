"""Builds a directory for the reference engine: the model's own files, and the masks."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
import transformers

from engines.directory.atomic_directory import atomic_directory
from engines.directory.build import BuildRequest, finish_directory, open_inputs
from engines.directory.manifest import Manifest
from engines.errors import MaskError
from engines.reference.model import load_transformers_model
from engines.reference.weights import weight_of
from maskgen.format.weight_files import files_of_weights


def build(request: BuildRequest) -> Manifest:
    """Build a reference engine directory: the model's own files, and the masks.

    Raises:
        EngineDirectoryError: see `engines.directory.build.open_inputs`; or transformers cannot
            load it.
        MaskError: see `engines.directory.build.open_inputs`; or a listed layer cannot be masked.
        MaskFileError: a mask file is unreadable.
    """
    inputs = open_inputs(request, "reference")
    _check_layers(request.model, {name for mask in inputs.masks.values() for name in mask.codes})
    with atomic_directory(request.out, overwrite=request.overwrite) as directory:
        for path in files_of_weights(request.model):
            shutil.copyfile(path, directory / path.name)
        return finish_directory(request, inputs, directory, "reference", None)


def _check_layers(directory: Path, layers: set[str]) -> None:
    """Load the model as serving will; refuse layers that transformers keeps as something else."""
    model = load_transformers_model(directory, torch.bfloat16)
    for layer in sorted(layers):
        if weight_of(model, layer) is None:
            raise MaskError(
                f"the mask lists {layer}, which {type(model).__name__} of transformers"
                f" {transformers.__version__} keeps neither as an nn.Linear nor as an expert: the"
                " reference engine cannot mask it. Use a mask without such layers, or none"
            )
