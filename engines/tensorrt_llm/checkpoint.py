"""Writes a TensorRT-LLM checkpoint: `config.json` and one `rankN.safetensors` per GPU.

Every source tensor is mapped, masked, cut and written before the next one is touched, so memory
holds one fused tensor at a time however large the model is.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from engines.directory.checkpoint import Checkpoint
from engines.directory.decoder_config import DecoderConfig
from engines.directory.progress import BuildProgress, silent
from engines.directory.tensor_file import Array, TensorSpec, TensorWriter
from engines.errors import EngineDirectoryError
from engines.tensorrt_llm.config import (
    Mapping,
    check_mapping,
    checkpoint_config,
    convertible_decoder,
)
from engines.tensorrt_llm.tensors import (
    SourceTensor,
    TargetTensor,
    local_part,
    local_shape,
    stage_targets,
)
from maskgen.format.json_file import write_json
from maskgen.format.mask import Mask
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import keep_from_codes

CHECKPOINT_DTYPES: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


def rank_file(rank: int) -> str:
    """Name of a rank's weights inside a checkpoint directory."""
    return f"rank{rank}.safetensors"


def write_checkpoint(
    source: Checkpoint,
    mask: Mask | None,
    out: Path,
    *,
    mapping: Mapping | None = None,
    dtype: str = "bfloat16",
    progress: BuildProgress = silent,
) -> None:
    """Write the checkpoint of `source` with the weights that `mask` drops set to zero.

    Args:
        source: Hugging Face model directory.
        mask: None writes the weights as they are.
        out: existing, empty directory; `config.json` is written last.
        mapping: over how many GPUs; one by default.
        dtype: `bfloat16` or `float16`; the weights are rounded to it.
        progress: told about every tensor.

    Raises:
        EngineDirectoryError: the model cannot be converted or cut this way, a tensor has another
            shape than the configuration says, or a value overflows `dtype`.
    """
    mapping = mapping or Mapping()
    if dtype not in CHECKPOINT_DTYPES:
        raise EngineDirectoryError(
            f"dtype {dtype!r} is unknown; choose {' or '.join(CHECKPOINT_DTYPES)}"
        )
    decoder = convertible_decoder(source.config)
    check_mapping(decoder, mapping)
    source.check(decoder.tensor_shapes())
    metadata = {
        "format": "pt",
        "mask_digest": "" if mask is None else mask.digest,
        "base_digest": "" if mask is None else mask.base_digest,
    }
    for stage in range(mapping.pp_size):
        targets = list(stage_targets(decoder, mapping, stage))
        specs = {
            t.name: _spec(source, t, decoder, mapping.tp_size, CHECKPOINT_DTYPES[dtype])
            for t in targets
        }
        with contextlib.ExitStack() as stack:
            first = stage * mapping.tp_size
            ranks = [
                stack.enter_context(TensorWriter(out / rank_file(first + tp), specs, metadata))
                for tp in range(mapping.tp_size)
            ]
            for done, target in enumerate(targets):
                progress(f"stage {stage}: {target.name}", done, len(targets))
                _write_target(source, mask, target, decoder, CHECKPOINT_DTYPES[dtype], ranks)
    config = checkpoint_config(decoder, dtype, mapping)
    write_json(out / "config.json", config)


def _spec(
    source: Checkpoint, target: TargetTensor, decoder: DecoderConfig, tp: int, dtype: np.dtype[Any]
) -> TensorSpec:
    parts = [local_shape(s, source.spec(s.name).shape, decoder, tp) for s in target.sources]
    return TensorSpec(dtype, (sum(part[0] for part in parts), *parts[0][1:]))


def _write_target(
    source: Checkpoint,
    mask: Mask | None,
    target: TargetTensor,
    decoder: DecoderConfig,
    dtype: np.dtype[Any],
    ranks: list[TensorWriter],
) -> None:
    tensors = [_read(source, s, mask, dtype) for s in target.sources]
    for rank, writer in enumerate(ranks):
        parts = [
            local_part(s, tensor, decoder, len(ranks), rank)
            for s, tensor in zip(target.sources, tensors, strict=True)
        ]
        writer.write(target.name, parts[0] if len(parts) == 1 else np.concatenate(parts))
    for s in target.sources:
        source.release(s.name)


def _read(
    source: Checkpoint, wanted: SourceTensor, mask: Mask | None, dtype: np.dtype[Any]
) -> Array:
    """The tensor, masked and rounded to `dtype`."""
    tensor = source.tensor(wanted.name)
    if mask is not None and wanted.name == f"{wanted.layer}.weight" and wanted.layer in mask.codes:
        tensor = _masked(tensor, mask.codes[wanted.layer])
    if wanted.offset:
        tensor = tensor.astype(np.float32) + np.float32(wanted.offset)
    if tensor.dtype == dtype:
        return tensor
    with np.errstate(over="ignore"):
        rounded = tensor.astype(dtype)
    if not np.isfinite(rounded).all() and np.isfinite(tensor).all():
        raise EngineDirectoryError(
            f"{wanted.name} has values beyond the range of {dtype}; use dtype bfloat16"
        )
    return rounded


def _masked(tensor: Array, codes: Array) -> Array:
    """Weights with the dropped ones set to +0.0.

    Multiplying the bits by the mask is exact and, unlike multiplying the values, never makes -0.0
    of a dropped negative weight.
    """
    bits = tensor.view(f"u{tensor.dtype.itemsize}")
    masked: Array = (bits * keep_from_codes(codes, TWO_FOUR)).view(tensor.dtype)
    return masked
