"""What the linear method needs to know of how a checkpoint stores its linear layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from engines.errors import EngineDirectoryError
from engines.vllm_plugin.backend import Backend, PackedRows
from engines.vllm_plugin.format import CODES, COLUMN_STEP, KEPT, QuantizationSpec
from engines.vllm_plugin.lowbit_format import SCALES, VALUES, LowbitForm, linear_form

UNLOADED_CODE = 0xFF
"""No pair of placement codes: what a byte of codes holds until it is loaded."""
_SEED = 24
_CERTAIN_BYTES = 8
_DTYPES = {"float16": torch.float16, "int8": torch.int8, "uint8": torch.uint8}


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of a vLLM layer.

    Attributes:
        dtype: of its numbers.
        width: columns, for the inputs of one worker.
        fill: a number that no checkpoint holds; None if every number of the type is a weight.
    """

    dtype: torch.dtype
    width: int
    fill: float | None

    def unloaded(self, rows: int) -> torch.Tensor:
        """(rows, width) before anything is loaded; `is_unloaded` finds what was never loaded."""
        if self.fill is None:
            return self._random_row().repeat(rows, 1)
        return torch.full((rows, self.width), self.fill, dtype=self.dtype)

    def is_unloaded(self, tensor: torch.Tensor) -> bool:
        """Whether a row of random bytes is still there. Rows too short to tell are taken as loaded.

        Weights are not such bytes by chance: it takes 64 equal bits and more.
        """
        if self.fill is not None or self.width < _CERTAIN_BYTES:
            return False
        return bool((tensor == self._random_row()).all(1).any())

    def _random_row(self) -> torch.Tensor:
        row = np.random.default_rng(_SEED).integers(0, 256, self.width, np.uint8)
        return torch.from_numpy(row).view(self.dtype)


class StoredForm(Protocol):
    """Layers of one form; `sparse` is whether a mask lists them."""

    def parts(self, *, sparse: bool) -> tuple[str, ...]:
        """The tensors that the checkpoint has of a layer."""

    def parameter(self, part: str, k: int) -> ParameterSpec:
        """The parameter of k inputs that such a tensor is loaded into."""

    def inputs_step(self, *, sparse: bool) -> int:
        """Where the inputs may be cut into shards: at multiples of this."""

    def pack(self, backend: Backend, tensors: Mapping[str, torch.Tensor], k: int) -> PackedRows:
        """Rows of loaded parameters, as the device's kernels want them.

        Raises:
            EngineDirectoryError: something is missing in the checkpoint, or damaged.
        """


class Bf16Form:
    """Kept values and codes, or dense weights."""

    def parts(self, *, sparse: bool) -> tuple[str, ...]:
        return (KEPT, CODES) if sparse else ("weight",)

    def parameter(self, part: str, k: int) -> ParameterSpec:
        if part == CODES:
            return ParameterSpec(torch.uint8, k // COLUMN_STEP, UNLOADED_CODE)
        return ParameterSpec(torch.bfloat16, k // 2 if part == KEPT else k, float("nan"))

    def inputs_step(self, *, sparse: bool) -> int:
        return COLUMN_STEP if sparse else 1

    def pack(self, backend: Backend, tensors: Mapping[str, torch.Tensor], k: int) -> PackedRows:
        # vLLM does not notice when a part of a fused parameter is missing in the checkpoint.
        codes = tensors.get(CODES)
        if codes is not None and bool((codes == UNLOADED_CODE).any()):
            raise EngineDirectoryError("placement codes are missing in the checkpoint")
        values = tensors["weight"] if codes is None else tensors[KEPT]
        if bool(values.isnan().any()):
            raise EngineDirectoryError("weights are missing in the checkpoint, or NaN")
        return backend.pack_dense(values) if codes is None else backend.pack_sparse(values, codes)


@dataclass(frozen=True)
class QuantisedForm:
    """int8 and int4 values, which the CPU has kernels for."""

    form: LowbitForm

    def parts(self, *, sparse: bool) -> tuple[str, ...]:
        return self.form.parts(sparse=sparse)

    def parameter(self, part: str, k: int) -> ParameterSpec:
        spec = self.form.tensor(part, 1, k)
        # A scale that is no number, a value and a minimum of -128, a bitmap that keeps nothing: the
        # packer refuses them. Every byte is two levels of int4, so that these start at random.
        fill = float("nan") if part == SCALES else -128 if spec.dtype.name == "int8" else 0
        levels = self.form.int4 and part in (KEPT, VALUES)
        return ParameterSpec(_DTYPES[spec.dtype.name], spec.shape[1], None if levels else fill)

    def inputs_step(self, *, sparse: bool) -> int:
        return self.form.block

    def pack(self, backend: Backend, tensors: Mapping[str, torch.Tensor], k: int) -> PackedRows:
        from engines.vllm_plugin.cpu import packed_rows

        for name, tensor in tensors.items():
            if self.parameter(name, k).is_unloaded(tensor):
                raise EngineDirectoryError(f"{name} is missing in the checkpoint")
        arrays = {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
        try:
            return packed_rows(self.form.pack(arrays, k))
        except EngineDirectoryError as error:
            raise EngineDirectoryError(f"missing in the checkpoint, or damaged: {error}") from error


def stored_form(spec: QuantizationSpec) -> StoredForm:
    """How the linear layers of a checkpoint are stored."""
    form = linear_form(spec)
    return Bf16Form() if form is None else QuantisedForm(form)
