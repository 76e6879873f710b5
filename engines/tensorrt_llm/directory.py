"""Writes a TensorRT-LLM engine directory up to the point where a GPU is needed."""

from __future__ import annotations

from pathlib import Path

from engines.directory.atomic_directory import atomic_directory
from engines.directory.build import BuildInputs, BuildRequest, finish_directory, open_inputs
from engines.directory.decoder_config import DecoderConfig, read_decoder_config
from engines.directory.manifest import Manifest
from engines.mask_rules import check_name
from engines.tensorrt_llm.checkpoint import CHECKPOINT_DTYPES, write_checkpoint
from engines.tensorrt_llm.commands import BuildOptions
from engines.tensorrt_llm.config import Mapping, convertible_decoder
from engines.tensorrt_llm.preflight import Preflight, check_checkpoint, sparse_targets
from engines.tensorrt_llm.record import (
    BASE,
    CHECKPOINTS,
    ENGINES,
    BuildRecord,
    EngineRecord,
    serving_files,
    write_record,
)
from engines.tensorrt_llm.script import write_script
from engines.tensorrt_llm.settings import BuildSettings
from engines.tensorrt_llm.tensors import stage_targets
from maskgen.format.mask import Mask
from maskgen.format.mask_file import read_mask


def write_directory(request: BuildRequest, settings: BuildSettings) -> BuildRecord:
    """Write checkpoints, `build.sh` and everything that serving needs but the engines.

    A model that is built without masks must itself be 2:4 already.

    Raises:
        EngineDirectoryError: the request cannot be met; nothing is left behind.
        PreflightError: a checkpoint would not give a sparse engine.
        MaskError: a mask does not belong to the model.
    """
    for name in request.masks:
        check_name(name)
    inputs = open_inputs(request, "tensorrt-llm")
    decoder = convertible_decoder(inputs.checkpoint.config)
    options = settings.options(decoder)
    masks: dict[str, Mask | None] = dict(inputs.masks) or {BASE: None}
    with atomic_directory(request.out, overwrite=request.overwrite) as directory:
        engines: dict[str, EngineRecord] = {}
        for name, mask in masks.items():
            folder = directory / CHECKPOINTS / name
            write_masked(request, inputs, name, mask, folder, settings.mapping, settings.dtype)
            counts = Preflight(0, 0)
            if settings.sparse:
                counts = check_masked(folder, mask, decoder, settings.mapping)
            engines[name] = engine_record(name, counts)
        record = _record(decoder, settings, options, engines)
        write_script(directory, record)
        manifest = finish_directory(
            request, inputs, directory, "tensorrt-llm", None, served=serving_files
        )
        write_record(directory, manifest, record)
    return record


def write_masked(
    request: BuildRequest,
    inputs: BuildInputs,
    name: str,
    mask: Mask | None,
    folder: Path,
    mapping: Mapping,
    dtype: str,
) -> None:
    """Write one mask's checkpoint to the new directory `folder`."""
    folder.mkdir(parents=True)

    def progress(what: str, done: int, total: int) -> None:
        request.progress(f"{name}: {what}", done, total)

    source = inputs.checkpoint
    write_checkpoint(source, mask, folder, mapping=mapping, dtype=dtype, progress=progress)


def check_masked(
    folder: Path, mask: Mask | None, decoder: DecoderConfig, mapping: Mapping
) -> Preflight:
    """Demand 2:4 of the weights that the mask lists, or of all without a mask.

    Raises:
        PreflightError: TensorRT would take a matrix for dense.
    """
    if mask is None:
        return check_checkpoint(folder)
    stages = [list(stage_targets(decoder, mapping, stage)) for stage in range(mapping.pp_size)]
    return check_checkpoint(folder, [sparse_targets(stage, mask.codes) for stage in stages])


def recheck_checkpoint(directory: Path, manifest: Manifest, record: BuildRecord, name: str) -> None:
    """Check a checkpoint of the directory again, which may have been replaced since.

    Raises:
        EngineDirectoryError: it is missing or unreadable.
        PreflightError: its weights are no longer 2:4.
    """
    folder = directory / CHECKPOINTS / name
    mask = read_mask(directory / manifest.mask(name).file) if manifest.masks else None
    decoder = read_decoder_config(directory)
    check_masked(folder, mask, decoder, record.mapping)


def engine_record(name: str, counts: Preflight) -> EngineRecord:
    """The record of an engine that is yet to be built."""
    return EngineRecord(
        directory=f"{ENGINES}/{name}", sparse_weights=counts.sparse, dense_weights=counts.dense
    )


def _record(
    decoder: DecoderConfig,
    settings: BuildSettings,
    options: BuildOptions,
    engines: dict[str, EngineRecord],
) -> BuildRecord:
    head_bytes = decoder.head_dim * CHECKPOINT_DTYPES[settings.dtype].itemsize
    return BuildRecord(
        per_mask=settings.per_mask,
        sparse=settings.sparse,
        gemm_plugin=settings.gemm_plugin,
        allow_dense=settings.allow_dense,
        dtype=settings.dtype,
        tp_size=settings.tp_size,
        pp_size=settings.pp_size,
        max_batch_size=options.max_batch_size,
        max_num_tokens=options.max_num_tokens,
        max_seq_len=options.max_seq_len,
        workers=options.workers,
        trtllm_args=options.extra,
        vocab_size=decoder.vocab,
        kv_bytes_per_token=2 * decoder.layers * decoder.kv_heads * head_bytes,
        prompt_logprobs=options.prompt_logprobs,
        engines=engines,
    )
