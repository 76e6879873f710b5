"""Writes GGUF files: the inverse of `convert`, with what a mask drops as zeros."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import quantize

from maskgen.format.mask import Mask
from maskgen.format.placements import keep_from_codes
from maskgen.format.weight_files import EMBEDDING, HEAD, StoredTensor, stored_tensors
from maskgen.gguf_model.architectures import GgufArchitecture
from maskgen.gguf_model.header import GgufError
from maskgen.gguf_model.tensors import file_names

EXPORT_TYPES = {
    kind.name.lower(): kind
    for kind in (Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q5_0, Type.Q4_0)
}
"""Types that give back zeros and that gguf can make, by their names."""

_DTYPES: dict[str, Any] = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}
_WHOLE = (Type.F32, Type.F16, Type.BF16)
_PIECE_VALUES = 1 << 21


@dataclass(frozen=True, slots=True)
class GgufContent:
    """What is to be written.

    Attributes:
        name: `general.architecture`.
        architecture: that it means.
        config: the model's config.json.
        head_dim: width of a head.
        metadata: further keys; a bool, int, float, text, or a list of one of them.
        vectors: further float32 tensors.
    """

    name: str
    architecture: GgufArchitecture
    config: Mapping[str, Any]
    head_dim: int
    metadata: Mapping[str, Any]
    vectors: Mapping[str, npt.NDArray[np.float32]]


def write_gguf(
    model: Path, out: Path, content: GgufContent, mask: Mask | None, kind: Type
) -> dict[str, int]:
    """Write a model directory as a GGUF file, tensor by tensor.

    Args:
        model: the directory.
        out: the file; whatever was there is replaced.
        content: what it says of itself.
        mask: what it drops is zero.
        kind: type of matrices. Of an embedding and a head it is `Q8_0` where it would be fewer
            bits; of a matrix whose rows are no multiple of the type's block, `F16`.

    Returns:
        Name of a type -> how many matrices have it.

    Raises:
        GgufError: the directory holds other tensors than the architecture has.
        ModelDirectoryError: the directory is malformed.
    """
    stored = stored_tensors(model)
    names = file_names(content.architecture, content.config, stored.keys())
    for missing in sorted(set(names.values()) - stored.keys()):
        raise GgufError(f"{model} lacks {missing}, which a GGUF file of {content.name} has")
    for strange in sorted(stored.keys() - set(names.values())):
        raise GgufError(f"{model} holds {strange}, which no GGUF file of {content.name} has")
    writer = gguf.GGUFWriter(out, content.name)
    for key, value in content.metadata.items():
        _add(writer, key, value)
    kinds = {name: _kind(target, stored[target], kind) for name, target in names.items()}
    for name, target in names.items():
        shape = stored[target].entry.shape
        block, nbytes = GGML_QUANT_SIZES[kinds[name]]
        size = int(np.prod(shape)) // block * nbytes
        packed = (*shape[:-1], shape[-1] // block * nbytes)
        writer.add_tensor_info(name, packed, np.dtype(np.uint8), size, kinds[name])
    for name, values in content.vectors.items():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes, Type.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, target in names.items():
        rows = _rows(content, name, target, stored[target], mask)
        packed_rows = [np.atleast_2d(quantize(piece, kinds[name])) for piece in rows]
        writer.write_tensor_data(np.concatenate(packed_rows).view(np.uint8))
    for values in content.vectors.values():
        writer.write_tensor_data(values)
    writer.close()
    matrices = [
        kinds[name] for name, target in names.items() if len(stored[target].entry.shape) > 1
    ]
    return {one.name: matrices.count(one) for one in dict.fromkeys(matrices)}


def _kind(target: str, tensor: StoredTensor, kind: Type) -> Type:
    shape = tensor.entry.shape
    if len(shape) == 1:
        return Type.F32
    if target in (EMBEDDING, HEAD) and kind not in _WHOLE:
        kind = Type.Q8_0
    return Type.F16 if shape[-1] % GGML_QUANT_SIZES[kind][0] else kind


def _rows(
    content: GgufContent, name: str, target: str, tensor: StoredTensor, mask: Mask | None
) -> Iterator[npt.NDArray[np.float32]]:
    """A tensor's rows in float32 as the file has them, some millions of values at a time."""
    if tensor.entry.dtype not in _DTYPES:
        raise GgufError(f"{target} is {tensor.entry.dtype}; bf16, f16 and f32 can be exported")
    shape, dtype = tensor.entry.shape, np.dtype(_DTYPES[tensor.entry.dtype])
    values = np.memmap(tensor.file, dtype, "r", tensor.entry.start, shape)
    paired = content.architecture.paired and name.split(".")[-2] in ("attn_q", "attn_k")
    if len(shape) == 1:
        row = values.astype(np.float32)
        gain = target.endswith("norm.weight")
        row = row + np.float32(content.architecture.gain_offset) if gain else row
        yield _pairs(row[:, None], content.head_dim)[:, 0][None] if paired else row[None]
        return
    layer = target.removesuffix(".weight")
    codes = mask.codes.get(layer) if mask is not None else None
    together = content.head_dim if paired else 1
    step = max(1, _PIECE_VALUES // (shape[1] * together)) * together
    for first in range(0, shape[0], step):
        piece = values[first : first + step].astype(np.float32)
        if mask is not None and codes is not None:
            keep = keep_from_codes(codes[first : first + step], mask.pattern)
            piece = np.where(keep, piece, np.float32(0))
        yield _pairs(piece, content.head_dim) if paired else piece


def _pairs(rows: npt.NDArray[np.float32], head_dim: int) -> npt.NDArray[np.float32]:
    """Rows 0 1 2 3 ... of a head's two halves become neighbours: the file's order."""
    heads = rows.reshape(-1, 2, head_dim // 2, rows.shape[1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)
