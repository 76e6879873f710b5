"""Model directories whose matrices are FP8 with a scale per block, as ordinary ones.

A weight `X.weight` in E4M3 (rows, cols) goes with `X.weight_scale_inv`, a factor for every block of
`weight_block_size`, 128 x 128 as a rule; the last blocks of rows and columns may be smaller. What
they stand for is their product. Activations, which such models round as well, are left alone.

Source: DeepSeek-V3's inference/kernel.py (`weight_dequant`), which Qwen3's FP8 models follow;
`integrations/finegrained_fp8.py` of transformers 5.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from maskgen.format.checkpoint_files import checkpoint_files
from maskgen.format.container import TensorBytes, write_tensors
from maskgen.format.json_file import read_json, write_json
from maskgen.format.model_directory import (
    CONFIG_FILE,
    QUANTIZATION_KEYS,
    WEIGHTS_FILE,
    ModelDirectoryError,
    read_quantization,
)
from maskgen.format.weight_files import StoredTensor, files_of_weights, stored_tensors

SCALE = "_scale_inv"
"""What the name of a weight's scales adds to that of the weight."""

_FP8 = "F8_E4M3"
_SCALE_DTYPES: Mapping[str, Any] = {
    "F32": np.float32,
    "BF16": ml_dtypes.bfloat16,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}
_PLAIN = ("BF16", "F16", "F32")
_DTYPES: Mapping[str, tuple[str, Any]] = {
    "bfloat16": ("BF16", ml_dtypes.bfloat16),
    "float16": ("F16", np.float16),
    "float32": ("F32", np.float32),
}


def is_block_fp8(directory: Path) -> bool:
    """Whether a `config.json` says that weights are FP8, in blocks or not."""
    config = read_json(directory / CONFIG_FILE, ModelDirectoryError)
    quantization = read_quantization(config, directory)
    return quantization is not None and quantization.method == "fp8"


@dataclass(frozen=True)
class BlockFp8Model:
    """A checked model directory, of which headers alone were read.

    Attributes:
        directory: where it lies.
        config: `config.json` of the same model without FP8.
        tensors: every tensor but scales, by name.
        scales: those of the FP8 tensors, by the tensor's name.
        block: rows and columns that share a scale.
    """

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    scales: Mapping[str, StoredTensor]
    block: tuple[int, int]

    @property
    def target(self) -> tuple[str, np.dtype[Any]]:
        """What FP8 weights become, as safetensors and numpy call it: the type of `config.json`."""
        name, dtype = _DTYPES[self.config["dtype"]]
        return name, np.dtype(dtype)

    def plain_tensors(self) -> dict[str, TensorBytes]:
        """The tensors of the same model without FP8, whose bytes are made when asked for."""
        return {
            name: TensorBytes(self.target[0], stored.entry.shape, partial(self._values, name))
            if name in self.scales
            else stored.source
            for name, stored in self.tensors.items()
        }

    def _values(self, name: str) -> Iterator[memoryview]:
        weight, stored, (high, wide) = self.tensors[name], self.scales[name], self.block
        rows, cols = weight.entry.shape
        scales = _array(stored, _SCALE_DTYPES[stored.entry.dtype]).astype(np.float32)
        by_column = np.repeat(scales, wide, axis=1)[:, :cols]
        band = high * cols  # bytes
        for block, start in enumerate(range(weight.entry.start, weight.entry.end, band)):
            raw = _bytes(weight, start, min(band, weight.entry.end - start))
            values = raw.view(ml_dtypes.float8_e4m3fn).reshape(-1, cols).astype(np.float32)
            with np.errstate(over="ignore", invalid="ignore"):
                found = (values * by_column[block]).astype(self.target[1])
            if not np.isfinite(found).all():
                last = min((block + 1) * high, rows)
                raise ModelDirectoryError(
                    f"{self.directory}: {name} has a weight in rows {block * high} to {last - 1}"
                    f" that is no number in {self.config['dtype']}; the checkpoint is broken"
                )
            yield np.ascontiguousarray(found).view(np.uint8).data


def read_block_fp8(directory: Path) -> BlockFp8Model:
    """What a directory of FP8 weights holds, after its headers.

    Raises:
        ModelDirectoryError: it is malformed; or its weights are FP8 in another way.
    """
    config = read_json(directory / CONFIG_FILE, ModelDirectoryError)
    fields = next(config[key] for key in QUANTIZATION_KEYS if config.get(key))
    where = f"{directory / CONFIG_FILE}: quantization_config:"
    block = fields.get("weight_block_size")
    whole = isinstance(block, list) and all(type(size) is int and size > 0 for size in block)
    if not whole or len(block) != 2:
        raise ModelDirectoryError(
            f"{where} weight_block_size is {block!r:.80}; FP8 weights are read with a scale per"
            " block of rows and columns, such as [128, 128]; use the bf16 model it was made from"
        )
    for name, only in (("fmt", "e4m3"), ("activation_scheme", "dynamic")):
        if (value := fields.get(name, only)) != only:
            raise ModelDirectoryError(f"{where} {name} is {value!r:.80}; only {only!r} is read")
    stored = stored_tensors(directory)
    scales = {name.removesuffix(SCALE): t for name, t in stored.items() if name.endswith(SCALE)}
    tensors = {name: tensor for name, tensor in stored.items() if not name.endswith(SCALE)}
    for name in sorted(tensors.keys() | scales.keys()):
        _check(directory, name, tensors.get(name), scales.get(name), (block[0], block[1]))
    plain = {key: value for key, value in config.items() if key not in QUANTIZATION_KEYS}
    dtype = plain.pop("torch_dtype", None)
    plain["dtype"] = plain.get("dtype") or dtype or "bfloat16"
    if plain["dtype"] not in _DTYPES:
        raise ModelDirectoryError(
            f"{directory / CONFIG_FILE}: dtype is {plain['dtype']!r:.80}, expected one of"
            f" {', '.join(_DTYPES)}"
        )
    return BlockFp8Model(directory, plain, tensors, scales, (block[0], block[1]))


def write_plain_directory(source: Path, out: Path) -> None:
    """Make an ordinary model directory of one with FP8 weights, some rows at a time.

    Args:
        source: the model directory.
        out: is made; must not exist.

    Raises:
        ModelDirectoryError: see `read_block_fp8`; or a weight is no number.
    """
    model = read_block_fp8(source)
    weights = files_of_weights(source)
    out.mkdir(parents=True)
    for path in checkpoint_files(source):
        if path in weights or path.name == CONFIG_FILE:
            continue
        copy = out / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(path, copy)
    write_json(out / CONFIG_FILE, dict(model.config))
    write_tensors(out / WEIGHTS_FILE, {"format": "pt"}, model.plain_tensors())


def _check(
    directory: Path,
    name: str,
    weight: StoredTensor | None,
    scale: StoredTensor | None,
    block: tuple[int, int],
) -> None:
    if weight is None:
        raise ModelDirectoryError(f"{directory} holds {name}{SCALE} without {name}")
    kind, shape = weight.entry.dtype, weight.entry.shape
    if scale is None:
        if kind not in _PLAIN:
            reason = f"without {name}{SCALE}" if kind == _FP8 else f"not {_FP8}"
            raise ModelDirectoryError(f"{directory}: {name} is {kind}, {reason}; it is not read")
        return
    if kind != _FP8 or len(shape) != 2:
        raise ModelDirectoryError(
            f"{directory}: {name} is {kind} {list(shape)} and has scales; only matrices in {_FP8}"
            " have"
        )
    expected = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    if scale.entry.shape != expected or scale.entry.dtype not in _SCALE_DTYPES:
        raise ModelDirectoryError(
            f"{directory}: {name}{SCALE} is {scale.entry.dtype} {list(scale.entry.shape)}; a weight"
            f" of {list(shape)} in blocks of {list(block)} needs {list(expected)} in"
            f" {', '.join(_SCALE_DTYPES)}"
        )


def _array(tensor: StoredTensor, dtype: Any) -> npt.NDArray[Any]:
    raw = _bytes(tensor, tensor.entry.start, tensor.entry.end - tensor.entry.start)
    values: npt.NDArray[Any] = raw.view(dtype).reshape(tensor.entry.shape)
    return values


def _bytes(tensor: StoredTensor, start: int, count: int) -> npt.NDArray[np.uint8]:
    with tensor.file.open("rb") as file:
        file.seek(start)
        raw = file.read(count)
    if len(raw) != count:
        raise ModelDirectoryError(f"{tensor.file} became shorter while it was read")
    return np.frombuffer(raw, np.uint8)
