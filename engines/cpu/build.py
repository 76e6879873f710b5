"""Builds engine directories for the CPU: packs layer by layer, never holding more than one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engines.cpu.storage_rule import FIXED_RULE
from engines.directory.atomic_directory import atomic_directory
from engines.directory.build import BuildInputs, BuildRequest, finish_directory, open_inputs
from engines.directory.checkpoint import Checkpoint
from engines.directory.decoder_config import LINEARS, DecoderConfig, decoder_config
from engines.directory.manifest import (
    COMPLEMENT_FILE,
    ENGINE_WEIGHTS_FILE,
    LayoutRecord,
    Manifest,
)
from engines.directory.tensor_file import TensorSpec, TensorWriter
from engines.errors import MaskError
from engines.native import kernels
from engines.native.layout import BF16, VERSION, Layout, pack_dense, pack_sparse, packed_bytes
from maskgen.format.two_four import PAIRS
from maskgen.format.weight_files import EMBEDDING, HEAD

PACKED_HEAD = "lm_head"
_U8 = np.dtype(np.uint8)
_F32 = np.dtype(np.float32)


def build(request: BuildRequest) -> Manifest:
    """Build a CPU engine directory; without masks, one whose layers are all dense.

    Raises:
        EngineDirectoryError: the model is unreadable or of an unsupported architecture.
        MaskError: see `engines.directory.build.open_inputs`; or the engine has no such layer.
        MaskFileError: a mask file is unreadable.
    """
    inputs = open_inputs(request, "cpu")
    config = decoder_config(inputs.checkpoint.config)
    linears = config.linear_shapes()
    config.rope.frequencies()  # refused here, and not when the engine starts
    sparse = {} if inputs.default_mask is None else inputs.masks[inputs.default_mask].codes
    if foreign := sorted(sparse.keys() - linears.keys()):
        raise MaskError(
            f"the mask lists {foreign[0]}, which the cpu engine keeps dense;"
            " make a mask of the decoder's linear layers"
        )
    inputs.checkpoint.check(config.tensor_shapes())
    with atomic_directory(request.out, overwrite=request.overwrite) as directory:
        specs = _weight_specs(inputs.checkpoint, config, set(sparse))
        dropped = {
            f"{name}.dropped": TensorSpec(BF16, (shape[0], shape[1] // 2))
            for name, shape in linears.items()
            if name in sparse and not request.sealed
        }
        metadata = {"format": "twofour-cpu-weights"}
        with TensorWriter(directory / ENGINE_WEIGHTS_FILE, specs, metadata) as weights:
            _write_shared(weights, inputs.checkpoint, config, request)
            if dropped:
                with TensorWriter(directory / COMPLEMENT_FILE, dropped, metadata) as complement:
                    _write_layers(weights, complement, inputs, config, request)
            else:
                _write_layers(weights, None, inputs, config, request)
        layout = LayoutRecord(
            id=Layout.SPARSE24_BF16.name.lower(),
            values="bf16",
            version=VERSION,
            tuned_for=kernels.isa(),
        )
        return finish_directory(
            request,
            inputs,
            directory,
            "cpu",
            layout if sparse else None,
            storage=FIXED_RULE.storage,
        )


def as_bf16(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """bf16 (nearest even) of bf16, f16 or f32 values; a view where nothing changes."""
    return values if values.dtype == BF16 else values.astype(BF16)


def _dropped_values(dense: npt.NDArray[Any], codes: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """(n, k) weights and (n, k/4) codes -> (n, k/2): what the mask drops, by rising position."""
    # The complement of placement c is placement 5 - c.
    positions = PAIRS[5 - codes].astype(np.intp)
    groups = dense.reshape(*codes.shape, 4)
    picked = np.take_along_axis(groups.view(np.uint16), positions, axis=-1)
    return picked.reshape(dense.shape[0], -1).view(BF16)


def _weight_specs(
    checkpoint: Checkpoint, config: DecoderConfig, sparse: set[str]
) -> dict[str, TensorSpec]:
    specs = {}
    for name, (n, k) in config.linear_shapes().items():
        layout = Layout.SPARSE24_BF16 if name in sparse else Layout.DENSE_BF16
        specs[f"{name}.{layout.name.lower()}"] = TensorSpec(_U8, (packed_bytes(layout, n, k),))
    head = packed_bytes(Layout.DENSE_BF16, config.vocab, config.hidden)
    specs[f"{PACKED_HEAD}.dense_bf16"] = TensorSpec(_U8, (head,))
    if not config.tied:
        specs[EMBEDDING] = TensorSpec(BF16, (config.vocab, config.hidden))
    return specs | {name: TensorSpec(_F32, (size,)) for name, size in config.vector_sizes().items()}


def _write_shared(
    weights: TensorWriter, checkpoint: Checkpoint, config: DecoderConfig, request: BuildRequest
) -> None:
    request.progress("packing the head", 0, config.layers)
    for name in config.vector_sizes():
        weights.write(name, checkpoint.tensor(name).astype(np.float32))
    source = EMBEDDING if config.tied else HEAD
    weights.write(f"{PACKED_HEAD}.dense_bf16", pack_dense(as_bf16(checkpoint.tensor(source))).data)
    checkpoint.release(source)
    if not config.tied:
        weights.write(EMBEDDING, as_bf16(checkpoint.tensor(EMBEDDING)))
        checkpoint.release(EMBEDDING)


def _write_layers(
    weights: TensorWriter,
    complement: TensorWriter | None,
    inputs: BuildInputs,
    config: DecoderConfig,
    request: BuildRequest,
) -> None:
    codes = {} if inputs.default_mask is None else inputs.masks[inputs.default_mask].codes
    for layer in range(config.layers):
        request.progress("packing layers", layer, config.layers)
        for linear in LINEARS:
            name = config.module(layer, linear)
            dense = as_bf16(inputs.checkpoint.tensor(f"{name}.weight"))
            if name in codes:
                packed = pack_sparse(dense, codes[name])
                if complement is not None:
                    values = _dropped_values(dense, codes[name])
                    complement.write(f"{name}.dropped", values)
            else:
                packed = pack_dense(dense)
            weights.write(f"{name}.{packed.layout.name.lower()}", packed.data)
            inputs.checkpoint.release(f"{name}.weight")
    request.progress("packing layers", config.layers, config.layers)
