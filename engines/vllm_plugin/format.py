"""The vLLM checkpoint: what `config.json` says about it, and how sparse weights lie in it.

A sparse layer `L` of N outputs and K inputs is stored as two tensors, both row-major so that vLLM
can cut them by row, and by column at any multiple of eight inputs:

    L.kept   bf16  (N, K/2)  the two kept weights of every group, by rising position
    L.codes  uint8 (N, K/8)  placement codes of two groups a byte, the first in the low nibble

What the default mask drops lies in `complement.safetensors` as `L.dropped`, bf16 (N, K/2). All
other tensors are the model's own. docs/vllm.md has the fields of `quantization_config`;
`engines.vllm_plugin.lowbit_format` has layers of int8 and int4 values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from engines.directory.manifest import first_fault
from engines.directory.tensor_file import Array
from engines.errors import EngineDirectoryError
from engines.native.layout import BF16
from engines.quantisation.options import Values
from maskgen.format.placements import Codes
from maskgen.format.two_four import PAIRS

QUANT_METHOD = "twofour"
SPEC_VERSION, LOWBIT_SPEC_VERSION = 1, 2
"""Of checkpoints that are all bf16, as since the first release, and of those that are not."""
KEPT, CODES, DROPPED = "kept", "codes", "dropped"
COLUMN_STEP = 8
"""Inputs that one byte of codes covers: the grain of column shards."""


class QuantizationSpec(BaseModel):
    """`quantization_config` of a checkpoint's `config.json`.

    Attributes:
        quant_method: `twofour`.
        format_version: 1 where all weights are bf16, else 2.
        pattern: of the masks; others than `2:4` only where values are int8 or int4.
        sparse_layers: the linear layers that are stored as kept values and codes, by their Hugging
            Face names; every other linear layer is dense.
        dense_kernel: what multiplies the dense layers: `own` (twofour's dense kernel, where the
            device has one) or `vllm` (vLLM's choice).
        mask: name of the mask that the kept values belong to; None where no layer is sparse.
        mask_digest: its digest.
        values: type of the linear layers' weights.
        block: inputs of a row that share a scale; 0 for bf16.
        minima: whether int4 blocks have a minimum of their own.
        head, head_block: the same of output head and embedding.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    quant_method: Literal["twofour"] = "twofour"
    format_version: int = Field(default=SPEC_VERSION, ge=1)
    pattern: Literal["2:4", "4:8", "8:16", "16:32"] = "2:4"
    sparse_layers: tuple[str, ...] = ()
    dense_kernel: Literal["own", "vllm"] = "own"
    mask: str | None = None
    mask_digest: str | None = None
    values: Values = "bf16"
    block: Literal[0, 32, 64, 128] = 0
    minima: bool = False
    head: Literal["bf16", "int8"] = "bf16"
    head_block: Literal[0, 32, 64, 128] = 0

    @field_validator("sparse_layers")
    @classmethod
    def _unique(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("layer names repeat")
        return names

    @model_validator(mode="after")
    def _fits_together(self) -> QuantizationSpec:
        if (self.values == "bf16") != (self.block == 0) or (self.head == "bf16") != (
            self.head_block == 0
        ):
            raise ValueError("bf16 values have block 0, int8 and int4 ones another")
        if self.minima and self.values != "int4":
            raise ValueError(f"{self.values} values have no minima")
        if self.values == "bf16" and self.pattern != "2:4":
            raise ValueError(f"bf16 values have no pattern {self.pattern}")
        plain = self.values == self.head == "bf16"
        if self.format_version != (SPEC_VERSION if plain else LOWBIT_SPEC_VERSION):
            raise ValueError(f"format_version {self.format_version} does not have these values")
        if not plain and self.dense_kernel != "own":
            raise ValueError(f"dense_kernel {self.dense_kernel} multiplies bf16 weights alone")
        return self

    def as_json(self) -> dict[str, Any]:
        """The object for `config.json`; version 1 has none of the fields of version 2."""
        later = {"values", "block", "minima", "head", "head_block"}
        plain = self.format_version == SPEC_VERSION
        return self.model_dump(mode="json", exclude=later if plain else None)


def parse_spec(config: Any) -> QuantizationSpec:
    """Read a `quantization_config`.

    Raises:
        EngineDirectoryError: no object, a newer format, or a field that is missing, unknown or
            malformed.
    """
    if not isinstance(config, Mapping):
        raise EngineDirectoryError(f"quantization_config is {config!r:.80}, expected an object")
    version = config.get("format_version")
    if isinstance(version, int) and version > LOWBIT_SPEC_VERSION:
        raise EngineDirectoryError(
            f"quantization_config has format_version {version}, this twofour reads up to"
            f" {LOWBIT_SPEC_VERSION}: update twofour or build the directory again"
        )
    try:
        return QuantizationSpec.model_validate(dict(config))
    except ValidationError as error:
        raise EngineDirectoryError(f"quantization_config: {first_fault(error)}") from error


def kept_values(dense: Array, codes: Codes) -> Array:
    """(N, K) bf16 and (N, K/4) codes -> (N, K/2): what the mask keeps, by rising position.

    -0.0 becomes 0.0, so that no consumer can take a kept zero for something else.
    """
    groups = np.ascontiguousarray(dense).view(np.uint16).reshape(*codes.shape, 4)
    picked = np.take_along_axis(groups, PAIRS[codes].astype(np.intp), axis=-1)
    picked[picked == 0x8000] = 0
    return picked.reshape(dense.shape[0], -1).view(BF16)


def dropped_values(dense: Array, codes: Codes) -> Array:
    """As `kept_values`, for what the mask drops."""
    # The complement of placement c is placement 5 - c.
    return kept_values(dense, (5 - codes).astype(np.uint8))


def dense_values(kept: Array, dropped: Array | None, codes: Codes) -> Array:
    """Inverse of the two: (N, K) bf16; zeros where dropped if `dropped` is None."""
    n, groups = codes.shape
    dense = np.zeros((n, groups, 4), np.uint16)
    for values, which in ((kept, codes), (dropped, 5 - codes)):
        if values is not None:
            bits = np.ascontiguousarray(values).view(np.uint16).reshape(n, groups, 2)
            np.put_along_axis(dense, PAIRS[which].astype(np.intp), bits, axis=-1)
    return dense.reshape(n, groups * 4).view(BF16)


def pack_nibbles(codes: Codes) -> npt.NDArray[np.uint8]:
    """(N, G) codes -> (N, ceil(G/2)) bytes; an odd last group gets a partner of code 0."""
    even = codes if codes.shape[1] % 2 == 0 else np.pad(codes, ((0, 0), (0, 1)))
    return np.bitwise_or(even[:, ::2], np.left_shift(even[:, 1::2], 4, dtype=np.uint8))


def unpack_nibbles(packed: npt.NDArray[np.uint8], groups: int) -> Codes:
    """Inverse of `pack_nibbles`; values are not checked."""
    codes = np.empty((len(packed), packed.shape[1] * 2), np.uint8)
    codes[:, ::2] = packed & 15
    codes[:, 1::2] = packed >> 4
    return codes[:, :groups]
