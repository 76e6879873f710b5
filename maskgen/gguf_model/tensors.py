"""Which tensor of a GGUF file becomes which one of a model directory."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType as Type

from maskgen.format.weight_files import EMBEDDING, HEAD
from maskgen.gguf_model import config as gguf_config
from maskgen.gguf_model.architectures import GgufArchitecture
from maskgen.gguf_model.header import GgufError, GgufHeader, GgufTensor
from maskgen.gguf_model.rope import LLAMA3_FREQUENCIES, LONG_FACTORS, SHORT_FACTORS
from maskgen.gguf_model.values import pieces

_NO_WEIGHTS = (LLAMA3_FREQUENCIES, LONG_FACTORS, SHORT_FACTORS)
_FLOATS = {Type.F32: "F32", Type.F16: "F16", Type.BF16: "BF16"}


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the directory.

    Attributes:
        source: what it comes from.
        head_dim: rows of a head whose pairs are to be taken apart; 0: rows stay as they are.
        offset: is subtracted.
    """

    source: GgufTensor
    head_dim: int = 0
    offset: float = 0.0

    def values(self, header: GgufHeader) -> Iterator[npt.NDArray[np.float32]]:
        """The values in float32, some rows (rows, width) at a time.

        Raises:
            GgufError: the file became shorter.
        """
        if self.head_dim and len(self.source.shape) == 1:
            for row in pieces(header.path, self.source):
                yield _halves(row.reshape(-1, 1), self.head_dim).reshape(1, -1)
            return
        for piece in pieces(header.path, self.source, self.head_dim or 1):
            turned = _halves(piece, self.head_dim) if self.head_dim else piece
            yield turned - np.float32(self.offset) if self.offset else turned


def planned_tensors(
    header: GgufHeader, architecture: GgufArchitecture, config: Mapping[str, Any]
) -> dict[str, PlannedTensor]:
    """Every tensor of the model directory, by name.

    Args:
        header: of the file.
        architecture: that the file says.
        config: the directory's config.json.

    Raises:
        GgufError: a tensor is missing, has too few or too many dimensions, or is not understood.
    """
    names = dict(_names(architecture, config, gguf_config.HEAD in header.tensors))
    missing = sorted(names.keys() - header.tensors.keys())
    unknown = sorted(header.tensors.keys() - names.keys() - set(_NO_WEIGHTS))
    for found, what in ((missing, "lacks"), (unknown, "holds, beside those of its architecture,")):
        if found:
            raise GgufError(f"{header.path} {what} {len(found)} tensors, such as {found[0]:.80}")
    planned = {}
    for name, target in names.items():
        source = header.tensors[name]
        if len(source.shape) != _dimensions(target):
            raise GgufError(f"{header.path}: {name} has shape {list(source.shape)}")
        paired = architecture.paired and name.split(".")[-2] in ("attn_q", "attn_k")
        head = int(config["head_dim"]) if paired else 0
        if head and source.shape[0] % head:
            raise GgufError(
                f"{header.path}: {name} has {source.shape[0]} outputs, no multiple of the head's"
                f" {head}"
            )
        gain = _dimensions(target) == 1 and target.endswith("norm.weight")
        planned[target] = PlannedTensor(source, head, architecture.gain_offset if gain else 0.0)
    return planned


def stored_type(header: GgufHeader) -> str:
    """safetensors' name of the type that the directory gets: the matrices' own, else BF16."""
    kinds = {tensor.type for tensor in header.tensors.values() if len(tensor.shape) == 2}
    if not kinds <= _FLOATS.keys():
        return "BF16"
    return _FLOATS[kinds.pop()] if len(kinds) == 1 else "F32"


def file_names(
    architecture: GgufArchitecture, config: Mapping[str, Any], directory: Container[str]
) -> dict[str, str]:
    """The file's name of every tensor -> the directory's.

    Args:
        architecture: of the file.
        config: the directory's config.json.
        directory: names that the directory has; a head of its own counts if it is among them.
    """
    return dict(_names(architecture, config, HEAD in directory))


def _names(
    architecture: GgufArchitecture, config: Mapping[str, Any], own_head: bool
) -> Iterator[tuple[str, str]]:
    parts = ("weight", "bias") if architecture.norm_biases else ("weight",)
    biased = {
        linear
        for flag, linears in architecture.biases.items()
        if flag == "" or config[flag]
        for linear in linears
    }
    yield gguf_config.EMBEDDING, EMBEDDING
    if own_head:
        yield gguf_config.HEAD, HEAD
    for part in parts:
        yield f"output_norm.{part}", f"model.norm.{part}"
    for layer in range(config["num_hidden_layers"]):
        there, here = f"blk.{layer}", f"model.layers.{layer}"
        for name, target in architecture.norms.items():
            for part in parts:
                yield f"{there}.{name}.{part}", f"{here}.{target}.{part}"
        for name, target in architecture.linears.items():
            yield f"{there}.{name}.weight", f"{here}.{target}.weight"
            if name in biased:
                yield f"{there}.{name}.bias", f"{here}.{target}.bias"


def _dimensions(target: str) -> int:
    return 1 if target.endswith(("norm.weight", "layernorm.weight", ".bias")) else 2


def _halves(rows: npt.NDArray[np.float32], head_dim: int) -> npt.NDArray[np.float32]:
    """Rows 0 1 2 3 ... of a head in the order 0 2 ... 1 3 ...: pairs become halves."""
    heads = rows.reshape(-1, head_dim // 2, 2, rows.shape[1])
    return heads.swapaxes(1, 2).reshape(rows.shape)
