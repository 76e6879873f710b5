"""Builds vLLM engine directories: a Hugging Face checkpoint that `vllm serve` loads as it is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engines.directory.atomic_directory import atomic_directory
from engines.directory.build import BuildInputs, BuildRequest, finish_directory, open_inputs
from engines.directory.checkpoint import Checkpoint
from engines.directory.decoder_config import MODEL_TYPES, decoder_config
from engines.directory.families import FAMILIES
from engines.directory.manifest import COMPLEMENT_FILE, LayoutRecord, Manifest
from engines.directory.tensor_file import Array, TensorSpec, TensorWriter
from engines.directory.values_source import (
    ValuesSource,
    check_made_for,
    quantisation_record,
    values_of,
)
from engines.errors import EngineDirectoryError, MaskError
from engines.native.layout import BF16
from engines.native.lowbit import QuantisedWeights
from engines.quantisation.grid import Grid, round_to_nearest
from engines.quantisation.options import HEAD_BLOCK, ValueOptions
from engines.vllm_plugin.format import (
    CODES,
    COLUMN_STEP,
    DROPPED,
    KEPT,
    LOWBIT_SPEC_VERSION,
    SPEC_VERSION,
    QuantizationSpec,
    dropped_values,
    kept_values,
    pack_nibbles,
)
from engines.vllm_plugin.lowbit_format import (
    INPUTS_STEP,
    Bools,
    LowbitForm,
    linear_form,
    table_form,
)
from maskgen.format.json_file import write_json
from maskgen.format.mask import Mask
from maskgen.format.model_directory import INDEX_FILE, WEIGHTS_FILE
from maskgen.format.placements import keep_from_codes
from maskgen.format.weight_files import EMBEDDING, HEAD

_U8 = np.dtype(np.uint8)
TESTED_MODEL_TYPES = tuple(name for name, family in FAMILIES.items() if family.mixing is None)
"""`model_type` of the models that the plugin's tests run through vLLM."""
LIMITS = {"cohere2": "vLLM's attention windows see one position more than those of transformers"}
"""`model_type` -> where vLLM's own answers are not those of transformers."""


def build(request: BuildRequest) -> Manifest:
    """Build a vLLM engine directory; without masks, a dense one.

    Raises:
        EngineDirectoryError: see `engines.directory.build.open_inputs`; or the weights are not
            those of the model's architecture, where twofour knows it; or values are int8 or int4
            and it does not, or a values file does not fit.
        MaskError: see `engines.directory.build.open_inputs`; or a listed layer is an expert, or
            its width is no multiple of 8.
        MaskFileError: a mask file is unreadable.
    """
    request, source, header = values_of(request)
    inputs = open_inputs(request, "vllm")
    check_made_for(header, inputs)
    _check_weights(inputs.checkpoint)
    default = None if inputs.default_mask is None else inputs.masks[inputs.default_mask]
    if default is not None:
        _check_layers(default)
    spec = _spec(inputs, default, request.values)
    plan = _Plan(inputs.checkpoint, default, spec, source)
    plan.check()
    request.note(_tested(str(inputs.checkpoint.config.get("model_type"))))
    with atomic_directory(request.out, overwrite=request.overwrite) as directory:
        _write_weights(directory, plan, request)
        return finish_directory(
            request,
            inputs,
            directory,
            "vllm",
            None if default is None else _layout(spec),
            config=_config(inputs, spec),
            quantisation=quantisation_record(request.values, header),
        )


def _check_weights(checkpoint: Checkpoint) -> None:
    # vLLM leaves what a quantised checkpoint lacks as it finds the memory, and ours counts as one.
    if checkpoint.config.get("model_type") in MODEL_TYPES:
        checkpoint.check(decoder_config(checkpoint.config).tensor_shapes())


def _tested(model_type: str) -> str:
    line = f"tested through vLLM: {', '.join(TESTED_MODEL_TYPES)}; this model is {model_type}"
    if model_type in TESTED_MODEL_TYPES:
        return f"{line}: {LIMITS[model_type]}" if model_type in LIMITS else line
    return f"{line}, which was not: compare its answers with those of --target reference"


def _check_layers(mask: Mask) -> None:
    for name, (_, k) in mask.shapes.items():
        if ".experts." in name:
            raise MaskError(
                f"the mask lists {name}: vLLM fuses experts, and the plugin multiplies linear"
                " layers only. Use a mask without them (`--exclude '*.experts.*'`), or none"
            )
        if k % COLUMN_STEP:
            raise MaskError(
                f"{name} has {k} inputs; the vLLM checkpoint needs a multiple of {COLUMN_STEP}."
                " Make a mask that leaves this layer dense"
            )


def _spec(inputs: BuildInputs, default: Mask | None, options: ValueOptions) -> QuantizationSpec:
    return QuantizationSpec.model_validate(
        {
            "format_version": SPEC_VERSION if options.plain else LOWBIT_SPEC_VERSION,
            "pattern": "2:4" if default is None else str(default.pattern),
            "sparse_layers": () if default is None else tuple(default.codes),
            "mask": inputs.default_mask,
            "mask_digest": None if default is None else default.digest,
            "values": options.values,
            "block": options.block_inputs,
            "minima": options.has_minima,
            "head": options.head_values,
            "head_block": HEAD_BLOCK if options.head_values == "int8" else 0,
        }
    )


def _config(inputs: BuildInputs, spec: QuantizationSpec) -> dict[str, Any]:
    """The model's `config.json`, in bf16 and with a `quantization_config`."""
    config = {k: v for k, v in inputs.checkpoint.config.items() if k != "torch_dtype"}
    return {**config, "dtype": "bfloat16", "quantization_config": spec.as_json()}


def _layout(spec: QuantizationSpec) -> LayoutRecord:
    if spec.values == "bf16":
        return LayoutRecord(id="kept_codes", values="bf16", version=SPEC_VERSION)
    return LayoutRecord(id="kept_bitmap", values=spec.values, version=LOWBIT_SPEC_VERSION)


@dataclass(frozen=True)
class _Plan:
    """Which of the model's tensors is stored how."""

    checkpoint: Checkpoint
    mask: Mask | None
    spec: QuantizationSpec
    source: ValuesSource

    @property
    def _linears(self) -> LowbitForm | None:
        return linear_form(self.spec)

    @property
    def _tables(self) -> LowbitForm | None:
        return table_form(self.spec)

    def check(self) -> None:
        """Raise EngineDirectoryError if the model is none whose layers can be int8 or int4."""
        if self._linears is None:
            return
        kind = self.checkpoint.config.get("model_type")
        able = [name for name in MODEL_TYPES if FAMILIES[name].mixing is None]
        if kind not in able:
            raise EngineDirectoryError(
                f"int8 and int4 values need one of the model types {', '.join(able)}; this"
                f" model is {kind}: build it with --values bf16"
            )
        for name, (_, k) in self._quantised_linears.items():
            if k % INPUTS_STEP:
                raise EngineDirectoryError(
                    f"{name} has {k} inputs; the vLLM checkpoint needs a multiple of {INPUTS_STEP}"
                    f" where values are {self.spec.values}: build it with --values bf16"
                )

    @cached_property
    def _quantised_linears(self) -> Mapping[str, tuple[int, int]]:
        """Shapes of the linear layers; none where they stay bf16."""
        if self._linears is None:
            return {}
        return decoder_config(self.checkpoint.config).linear_shapes()

    def _form(self, name: str) -> LowbitForm | None:
        """Of a tensor of the model; None where it stays bf16."""
        if name in (EMBEDDING, HEAD):
            return self._tables
        linear = name.removesuffix(".weight")
        return self._linears if name != linear and linear in self._quantised_linears else None

    def _listed(self, name: str) -> str | None:
        """The layer that a tensor is the weight of, if the mask lists it."""
        layer = name.removesuffix(".weight")
        listed = self.mask is not None and name != layer and layer in self.mask.codes
        return layer if listed else None

    def specs(self, name: str) -> dict[str, TensorSpec]:
        """Names, types and shapes of what is stored of a tensor of the model."""
        spec, form, listed = self.checkpoint.spec(name), self._form(name), self._listed(name)
        layer = name.removesuffix(".weight")
        if form is not None:
            parts = form.parts(sparse=listed is not None)
            return {f"{layer}.{part}": form.tensor(part, *spec.shape) for part in parts}
        if listed is None:
            return {name: spec}
        n, k = spec.shape
        return {
            f"{layer}.{KEPT}": TensorSpec(BF16, (n, k // 2)),
            f"{layer}.{CODES}": TensorSpec(_U8, (n, k // COLUMN_STEP)),
        }

    def dropped_specs(self) -> dict[str, TensorSpec]:
        """The same for the complement."""
        found = {}
        for layer, (n, k) in ({} if self.mask is None else self.mask.shapes).items():
            form = self._form(f"{layer}.weight")
            bf16 = TensorSpec(BF16, (n, k // 2))
            found[f"{layer}.{DROPPED}"] = bf16 if form is None else form.tensor(KEPT, n, k)
        return found

    def arrays(self, name: str) -> dict[str, Array]:
        """What `specs` and `dropped_specs` name of a tensor of the model."""
        tensor, form, listed = self.checkpoint.tensor(name), self._form(name), self._listed(name)
        layer = name.removesuffix(".weight")
        if form is not None:
            found = form.store(self._quantised(name, tensor), self._keep(listed))
            return {f"{layer}.{part}": array for part, array in found.items()}
        if listed is None or self.mask is None:
            return {name: tensor}
        codes, dense = self.mask.codes[listed], tensor.astype(BF16, copy=False)
        return {
            f"{layer}.{KEPT}": kept_values(dense, codes),
            f"{layer}.{CODES}": pack_nibbles(codes),
            f"{layer}.{DROPPED}": dropped_values(dense, codes),
        }

    def _quantised(self, name: str, tensor: Array) -> QuantisedWeights:
        if name in (EMBEDDING, HEAD):
            return round_to_nearest(tensor, Grid("int8", self.spec.head_block))
        return self.source.layer(name.removesuffix(".weight"), tensor, slice(None))

    def _keep(self, listed: str | None) -> Bools | None:
        if listed is None or self.mask is None:
            return None
        return keep_from_codes(self.mask.codes[listed], self.mask.pattern)


def _write_weights(directory: Path, plan: _Plan, request: BuildRequest) -> None:
    checkpoint, names = plan.checkpoint, list(plan.checkpoint)
    specs = {stored: spec for name in names for stored, spec in plan.specs(name).items()}
    dropped = {} if request.sealed else plan.dropped_specs()
    metadata = {"format": "pt"}
    path = directory / COMPLEMENT_FILE
    has_complement = plan.mask is not None and not request.sealed
    with (
        TensorWriter(directory / WEIGHTS_FILE, specs, metadata) as weights,
        TensorWriter(path, dropped, {}) if has_complement else nullcontext() as complement,
    ):
        for done, name in enumerate(names):
            request.progress("writing weights", done, len(names))
            for stored, array in plan.arrays(name).items():
                if stored in specs:
                    weights.write(stored, array)
                elif complement is not None:
                    complement.write(stored, array)
            checkpoint.release(name)
    # vLLM reads every *.safetensors file unless an index says which ones are the model.
    index = {
        "metadata": {"total_size": sum(spec.nbytes for spec in specs.values())},
        "weight_map": dict.fromkeys(sorted(specs), WEIGHTS_FILE),
    }
    write_json(directory / INDEX_FILE, index, indent=1)
