"""Builds engine directories for the CPU: packs layer by layer, never holding more than one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.cpu.matrix import (
    Bf16Matrix,
    Kept,
    LowbitMatrix,
    Matrix,
    dropped_shape,
    kept_of,
)
from engines.cpu.storage_rule import FIXED_RULE
from engines.cpu.value_form import version_of
from engines.directory.atomic_directory import atomic_directory
from engines.directory.build import BuildInputs, BuildRequest, finish_directory, open_inputs
from engines.directory.checkpoint import Checkpoint
from engines.directory.decoder_config import DecoderConfig, decoder_config
from engines.directory.manifest import (
    COMPLEMENT_FILE,
    DENSE_FILE,
    ENGINE_WEIGHTS_FILE,
    LayoutRecord,
    Manifest,
)
from engines.directory.tensor_file import TensorSpec, TensorWriter
from engines.directory.values_source import (
    ValuesSource,
    check_made_for,
    quantisation_record,
    values_of,
)
from engines.errors import MaskError
from engines.native import kernels, lowbit
from engines.native.layout import (
    BF16,
    Layout,
    PackedWeights,
    dense_layout,
    pack_dense,
    packed_bytes,
    sparse_layout,
)
from engines.quantisation.grid import Grid, round_to_nearest
from engines.quantisation.options import HEAD_BLOCK, ValueOptions
from maskgen.format.mask import Mask
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import Codes
from maskgen.format.weight_files import EMBEDDING, HEAD

PACKED_HEAD = "lm_head"
PACKED_EMBEDDING = "model.embed_tokens"
_U8 = np.dtype(np.uint8)
_F32 = np.dtype(np.float32)


def build(request: BuildRequest) -> Manifest:
    """Build a CPU engine directory; without masks, one whose layers are all dense.

    Raises:
        EngineDirectoryError: the model is unreadable or of an unsupported architecture; or the
            values file is malformed, was made for another model, or options contradict it.
        MaskError: see `engines.directory.build.open_inputs`; or the engine has no such layer.
        MaskFileError: a mask file is unreadable.
    """
    request, source, header = values_of(request)
    inputs = open_inputs(request, "cpu")
    check_made_for(header, inputs)
    config = decoder_config(inputs.checkpoint.config)
    for rope in config.ropes:
        rope.frequencies()  # refused here, and not when the engine starts
        if rope.reach < rope.context:
            request.note(
                f"sequences of up to {rope.reach} of {rope.context} positions: beyond it the"
                " longrope has other frequencies"
            )
    default = None if inputs.default_mask is None else inputs.masks[inputs.default_mask]
    sparse = {} if default is None else default.codes
    if foreign := sorted(sparse.keys() - config.linear_shapes().keys()):
        raise MaskError(
            f"the mask lists {foreign[0]}, which the cpu engine keeps dense;"
            " make a mask of the decoder's linear layers"
        )
    inputs.checkpoint.check(config.tensor_shapes())
    codes = {} if default is None else config.codes_of_parts(default)
    plan = _Plan(config, request.values, default, codes, source)
    with atomic_directory(request.out, overwrite=request.overwrite) as directory:
        metadata = {"format": "twofour-cpu-weights"}
        dropped = {} if request.sealed else plan.complement_specs()
        full = plan.dense_specs() if request.with_dense else {}
        with TensorWriter(
            directory / ENGINE_WEIGHTS_FILE, plan.weight_specs(), metadata
        ) as weights:
            _write_shared(weights, inputs.checkpoint, plan, request)
            with (
                _writer(directory / COMPLEMENT_FILE, dropped, metadata) as complement,
                _writer(directory / DENSE_FILE, full, metadata) as dense,
            ):
                _write_layers(weights, complement, dense, inputs, plan, request)
        return finish_directory(
            request,
            inputs,
            directory,
            "cpu",
            plan.layout_record() if sparse else None,
            quantisation=quantisation_record(request.values, header),
            storage=FIXED_RULE.storage,
        )


@dataclass(frozen=True)
class _Plan:
    """Which tensor is packed how."""

    config: DecoderConfig
    options: ValueOptions
    mask: Mask | None
    codes: Mapping[str, Codes]  # of the linear layers that are sparse
    source: ValuesSource

    @property
    def _sparse_layout(self) -> Layout:
        pattern = TWO_FOUR if self.mask is None else self.mask.pattern
        return sparse_layout(pattern, self.options.values)

    def kept(self, name: str) -> Kept | None:
        """What the default mask keeps of a linear layer; None where it does not list it."""
        if self.mask is None or name not in self.codes:
            return None
        return kept_of(self.codes[name], self.mask.pattern, self._sparse_layout)

    def layout(self, name: str) -> Layout:
        """Of a linear layer."""
        if name in self.codes:
            return self._sparse_layout
        return dense_layout(self.options.values)

    @property
    def table_layout(self) -> Layout:
        """Of the head, and of an embedding of its own that is not bf16."""
        return dense_layout(self.options.head_values)

    def matrix(self, name: str, weights: npt.NDArray[Any], rows: slice) -> Matrix:
        """Some rows of a matrix of the checkpoint as values: a linear layer."""
        if self.options.values == "bf16":
            return Bf16Matrix(as_bf16(weights[rows]))
        return LowbitMatrix(self._sparse_layout, self.source.layer(name, weights, rows))

    def table(self, weights: npt.NDArray[Any]) -> PackedWeights:
        """The packed head or embedding."""
        if self.options.head_values == "bf16":
            return pack_dense(as_bf16(weights))
        grid = Grid("int8", HEAD_BLOCK)
        return lowbit.pack(grid.dense_layout, round_to_nearest(weights, grid))

    def weight_specs(self) -> dict[str, TensorSpec]:
        """What the file of weights holds."""
        config, specs = self.config, {}
        for name, shape in config.part_shapes().items():
            layout = self.layout(name)
            specs[f"{name}.{layout.name.lower()}"] = self._packed_spec(layout, shape)
        table = self.table_layout
        size = packed_bytes(table, config.vocab, config.hidden, HEAD_BLOCK if table.lowbit else 0)
        specs[f"{PACKED_HEAD}.{table.name.lower()}"] = TensorSpec(_U8, (size,))
        if not config.tied and table.lowbit:
            specs[f"{PACKED_EMBEDDING}.{table.name.lower()}"] = TensorSpec(_U8, (size,))
        elif not config.tied:
            specs[EMBEDDING] = TensorSpec(BF16, (config.vocab, config.hidden))
        specs |= {n: TensorSpec(_F32, shape) for n, shape in config.router_shapes().items()}
        return specs | {n: TensorSpec(_F32, (size,)) for n, size in config.vector_sizes().items()}

    def complement_specs(self) -> dict[str, TensorSpec]:
        """What the complement holds."""
        return {
            f"{name}.dropped": TensorSpec(*dropped_shape(*shape, self.options.values))
            for name, shape in self.config.part_shapes().items()
            if name in self.codes
        }

    def dense_specs(self) -> dict[str, TensorSpec]:
        """What the file of the dense model holds: the layers that the masks list."""
        layout = dense_layout(self.options.values)
        return {
            f"{name}.{layout.name.lower()}": self._packed_spec(layout, shape)
            for name, shape in self.config.part_shapes().items()
            if name in self.codes
        }

    def _packed_spec(self, layout: Layout, shape: tuple[int, int]) -> TensorSpec:
        options = self.options
        size = packed_bytes(layout, *shape, options.block_inputs, options.has_minima)
        return TensorSpec(_U8, (size,))

    def layout_record(self) -> LayoutRecord:
        """Of the sparse layers."""
        layout = self._sparse_layout
        return LayoutRecord(
            id=layout.name.lower(),
            values=layout.values,
            version=version_of(layout),
            tuned_for=kernels.isa(),
        )


def as_bf16(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """bf16 (nearest even) of bf16, f16 or f32 values; a view where nothing changes."""
    return values if values.dtype == BF16 else values.astype(BF16)


def _write_shared(
    weights: TensorWriter, checkpoint: Checkpoint, plan: _Plan, request: BuildRequest
) -> None:
    config = plan.config
    request.progress("packing the head", 0, config.layers)
    for name in (*config.vector_sizes(), *config.router_shapes()):
        weights.write(name, checkpoint.tensor(name).astype(np.float32))
    source = EMBEDDING if config.tied else HEAD
    table = plan.table_layout.name.lower()
    weights.write(f"{PACKED_HEAD}.{table}", plan.table(checkpoint.tensor(source)).data)
    checkpoint.release(source)
    if config.tied:
        return
    embedding = checkpoint.tensor(EMBEDDING)
    if plan.table_layout.lowbit:
        weights.write(f"{PACKED_EMBEDDING}.{table}", plan.table(embedding).data)
    else:
        weights.write(EMBEDDING, as_bf16(embedding))
    checkpoint.release(EMBEDDING)


def _writer(
    path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]
) -> AbstractContextManager[TensorWriter | None]:
    """Writes a file; none where nothing is to be in it."""
    return TensorWriter(path, specs, metadata) if specs else nullcontext()


def _write_layers(
    weights: TensorWriter,
    complement: TensorWriter | None,
    dense: TensorWriter | None,
    inputs: BuildInputs,
    plan: _Plan,
    request: BuildRequest,
) -> None:
    config = plan.config
    for layer in range(config.layers):
        request.progress("packing layers", layer, config.layers)
        for linear in config.linears(layer):
            name = config.module(layer, linear)
            stored, rows = config.place(layer, linear)
            matrix = plan.matrix(stored, inputs.checkpoint.tensor(f"{stored}.weight"), rows)
            layout, kept = plan.layout(name), plan.kept(name)
            if kept is not None and complement is not None:
                complement.write(f"{name}.dropped", matrix.dropped(kept))
            if kept is not None and dense is not None:
                packed = matrix.pack(None)
                dense.write(f"{name}.{packed.layout.name.lower()}", packed.data)
            weights.write(f"{name}.{layout.name.lower()}", matrix.pack(kept).data)
            inputs.checkpoint.release(f"{stored}.weight")
    request.progress("packing layers", config.layers, config.layers)
