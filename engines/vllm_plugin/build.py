"""Builds vLLM engine directories: a Hugging Face checkpoint that `vllm serve` loads as it is."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from engines.directory.atomic_directory import atomic_directory
from engines.directory.build import BuildInputs, BuildRequest, finish_directory, open_inputs
from engines.directory.checkpoint import Checkpoint
from engines.directory.decoder_config import MODEL_TYPES, decoder_config
from engines.directory.manifest import COMPLEMENT_FILE, LayoutRecord, Manifest
from engines.directory.tensor_file import TensorSpec, TensorWriter
from engines.errors import MaskError
from engines.native.layout import BF16
from engines.vllm_plugin.format import (
    CODES,
    COLUMN_STEP,
    DROPPED,
    KEPT,
    SPEC_VERSION,
    QuantizationSpec,
    dropped_values,
    kept_values,
    pack_nibbles,
)
from maskgen.format.json_file import write_json
from maskgen.format.mask import Mask
from maskgen.format.model_directory import INDEX_FILE, WEIGHTS_FILE

_U8 = np.dtype(np.uint8)
TESTED_MODEL_TYPES = ("llama",)
"""`model_type` of the models that the plugin's tests run through vLLM."""


def build(request: BuildRequest) -> Manifest:
    """Build a vLLM engine directory; without masks, a dense one.

    Raises:
        EngineDirectoryError: see `engines.directory.build.open_inputs`; or the weights are not
            those of the model's architecture, where twofour knows it.
        MaskError: see `engines.directory.build.open_inputs`; or a listed layer is an expert, or
            its width is no multiple of 8.
        MaskFileError: a mask file is unreadable.
    """
    inputs = open_inputs(request, "vllm")
    _check_weights(inputs.checkpoint)
    default = None if inputs.default_mask is None else inputs.masks[inputs.default_mask]
    if default is not None:
        _check_layers(default)
    request.note(_tested(str(inputs.checkpoint.config.get("model_type"))))
    with atomic_directory(request.out, overwrite=request.overwrite) as directory:
        _write_weights(directory, inputs, default, request)
        layout = LayoutRecord(id="kept_codes", values="bf16", version=SPEC_VERSION)
        return finish_directory(
            request,
            inputs,
            directory,
            "vllm",
            None if default is None else layout,
            config=_config(inputs, default),
        )


def _check_weights(checkpoint: Checkpoint) -> None:
    # vLLM leaves what a quantised checkpoint lacks as it finds the memory, and ours counts as one.
    if checkpoint.config.get("model_type") in MODEL_TYPES:
        checkpoint.check(decoder_config(checkpoint.config).tensor_shapes())


def _tested(model_type: str) -> str:
    line = f"tested through vLLM: {', '.join(TESTED_MODEL_TYPES)}; this model is {model_type}"
    if model_type in TESTED_MODEL_TYPES:
        return line
    return f"{line}, which was not: compare its answers with those of --target reference"


def _check_layers(mask: Mask) -> None:
    for name, (_, k) in mask.shapes.items():
        if ".experts." in name:
            raise MaskError(
                f"the mask lists {name}: vLLM fuses experts, and the plugin multiplies linear"
                " layers only. Use a mask without them, or none"
            )
        if k % COLUMN_STEP:
            raise MaskError(
                f"{name} has {k} inputs; the vLLM checkpoint needs a multiple of {COLUMN_STEP}."
                " Make a mask that leaves this layer dense"
            )


def _config(inputs: BuildInputs, default: Mask | None) -> dict[str, Any]:
    """The model's `config.json`, in bf16 and with a `quantization_config`."""
    spec = QuantizationSpec(
        sparse_layers=() if default is None else tuple(default.codes),
        mask=inputs.default_mask,
        mask_digest=None if default is None else default.digest,
    )
    config = {k: v for k, v in inputs.checkpoint.config.items() if k != "torch_dtype"}
    return {**config, "dtype": "bfloat16", "quantization_config": spec.model_dump(mode="json")}


def _write_weights(
    directory: Path, inputs: BuildInputs, default: Mask | None, request: BuildRequest
) -> None:
    checkpoint = inputs.checkpoint
    sparse = {f"{name}.weight": name for name in (default.codes if default is not None else ())}
    specs: dict[str, TensorSpec] = {}
    for name in checkpoint:
        spec = checkpoint.spec(name)
        if name in sparse:
            n, k = spec.shape
            specs[f"{sparse[name]}.{KEPT}"] = TensorSpec(BF16, (n, k // 2))
            specs[f"{sparse[name]}.{CODES}"] = TensorSpec(_U8, (n, k // COLUMN_STEP))
        else:
            specs[name] = spec
    metadata = {"format": "pt"}
    with TensorWriter(directory / WEIGHTS_FILE, specs, metadata) as weights:
        for done, name in enumerate(checkpoint):
            request.progress("writing weights", done, len(specs))
            if name not in sparse:
                weights.write(name, checkpoint.tensor(name))
                checkpoint.release(name)
        if default is not None:
            _write_sparse(directory, weights, checkpoint, default, request)
    # vLLM reads every *.safetensors file unless an index says which ones are the model.
    index = {
        "metadata": {"total_size": sum(spec.nbytes for spec in specs.values())},
        "weight_map": dict.fromkeys(sorted(specs), WEIGHTS_FILE),
    }
    write_json(directory / INDEX_FILE, index, indent=1)


def _write_sparse(
    directory: Path,
    weights: TensorWriter,
    checkpoint: Checkpoint,
    mask: Mask,
    request: BuildRequest,
) -> None:
    specs = {
        f"{name}.{DROPPED}": TensorSpec(BF16, (n, k // 2)) for name, (n, k) in mask.shapes.items()
    }
    path = directory / COMPLEMENT_FILE
    with nullcontext() if request.sealed else TensorWriter(path, specs, {}) as complement:
        for done, (name, codes) in enumerate(mask.codes.items()):
            request.progress("writing sparse layers", done, len(mask.codes))
            dense = checkpoint.tensor(f"{name}.weight").astype(BF16, copy=False)
            weights.write(f"{name}.{KEPT}", kept_values(dense, codes))
            weights.write(f"{name}.{CODES}", pack_nibbles(codes))
            if complement is not None:
                complement.write(f"{name}.{DROPPED}", dropped_values(dense, codes))
            checkpoint.release(f"{name}.weight")
