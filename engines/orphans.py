"""Reads 2:4 checkpoints that other tools wrote and nothing serves any more.

Two kinds: `sparse-24-bitmask` (compressed-tensors, llm-compressor), which stores for a weight `L`
the tensors `L.compressed` (rows, cols/2), `L.bitmask` (rows, ceil(cols/8)) uint8 with the lowest
bit first, and `L.shape`; and plain dense checkpoints whose linear layers happen to be 2:4.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.build import copy_text_files
from engines.checkpoint import Checkpoint
from engines.errors import EngineDirectoryError, as_engine_directory_error
from engines.tensorfile import TensorSpec, TensorWriter
from maskgen.format.model_directory import QUANTIZATION_KEYS, read_quantization
from maskgen.maskfile import Mask, base_digest, write_mask
from maskgen.patterns import GROUP, Codes, codes_from_keep, keep_from_codes, project

Progress = Callable[[str, int, int], None]

MODEL_FOLDER, MASK_FILE = "model", "mask.safetensors"
_BITMASK, _COMPRESSED, _SHAPE = ".bitmask", ".compressed", ".shape"
_NEVER_SPARSE = ("embed", "lm_head", "norm")


@dataclass(frozen=True)
class Imported:
    """What an import found and wrote.

    Attributes:
        kind: `sparse-24-bitmask` or `dense`.
        sparse_layers: names of the layers that the mask lists.
        dense_layers: linear layers that are not 2:4 -> groups that keep more than two weights.
        model: the checkpoint, written as an ordinary dense one.
        mask: the mask file that belongs to it.
    """

    kind: str
    sparse_layers: tuple[str, ...]
    dense_layers: dict[str, int]
    model: Path
    mask: Path


def import_checkpoint(
    source: Path,
    out: Path,
    *,
    domain: str = "general",
    progress: Progress = lambda what, done, total: None,
) -> Imported:
    """Write `out/model`, an ordinary dense checkpoint, and `out/mask.safetensors`.

    -0.0 becomes 0.0 in the sparse layers: tools that take it for a kept weight broke on it.

    Args:
        source: a Hugging Face model directory.
        out: an existing directory to write to.
        domain: what the mask will call its domain.
        progress: told about every tensor.

    Raises:
        EngineDirectoryError: `source` is malformed, quantised below 16 bits, or has no 2:4 layer.
    """
    checkpoint = Checkpoint(source, encoded=True)
    _refuse_quantised(checkpoint)
    compressed = _compressed_layers(checkpoint)
    if compressed:
        codes, dense = _codes_of_bitmasks(checkpoint, compressed), dict[str, int]()
    else:
        codes, dense = _codes_of_values(checkpoint, progress)
    if not codes:
        raise EngineDirectoryError(f"{source} has no 2:4 layer{_closest(dense)}")
    model = out / MODEL_FOLDER
    model.mkdir()
    _write_model(checkpoint, compressed, codes, model, progress)
    mask = Mask(
        codes=codes,
        base_digest=base_digest(model),
        method="imported",
        domain=domain,
        calibration_digest=None,
        seed=0,
    )
    write_mask(out / MASK_FILE, mask)
    return Imported(
        kind="sparse-24-bitmask" if compressed else "dense",
        sparse_layers=tuple(mask.codes),
        dense_layers=dense,
        model=model,
        mask=out / MASK_FILE,
    )


def _refuse_quantised(checkpoint: Checkpoint) -> None:
    with as_engine_directory_error():
        quantization = read_quantization(checkpoint.config)
    if quantization is not None and not quantization.sparse_only:
        raise EngineDirectoryError(
            f"{checkpoint.directory} is quantised ({quantization.method});"
            " only 16- and 32-bit weights can be imported"
        )


def _compressed_layers(checkpoint: Checkpoint) -> dict[str, str]:
    """Layer name -> prefix of its tensors, which ends in `.weight` in some versions."""
    found = {}
    for name in checkpoint:
        if name.endswith(_BITMASK):
            prefix = name.removesuffix(_BITMASK)
            for suffix in (_COMPRESSED, _SHAPE):
                if prefix + suffix not in checkpoint:
                    raise EngineDirectoryError(
                        f"{checkpoint.directory}: {name} without {prefix + suffix}"
                    )
            found[prefix.removesuffix(".weight")] = prefix
    return found


def _shape(checkpoint: Checkpoint, prefix: str) -> tuple[int, int]:
    shape = tuple(int(d) for d in checkpoint.raw(prefix + _SHAPE).reshape(-1))
    if len(shape) != 2 or min(shape) < 1 or shape[1] % GROUP:
        raise EngineDirectoryError(
            f"{prefix} has shape {shape}; 2:4 needs rows x a multiple of {GROUP}"
        )
    n, k = shape
    for suffix, expected in ((_BITMASK, (n, -(-k // 8))), (_COMPRESSED, (n, k // 2))):
        got = checkpoint.spec(prefix + suffix).shape
        if got != expected:
            raise EngineDirectoryError(
                f"{prefix}{suffix} is {got}; a weight of {shape} needs {expected}"
            )
    return n, k


def _codes_of_bitmasks(checkpoint: Checkpoint, compressed: dict[str, str]) -> dict[str, Codes]:
    codes = {}
    for name, prefix in compressed.items():
        _, k = _shape(checkpoint, prefix)
        bits = checkpoint.raw(prefix + _BITMASK)
        if bits.dtype != np.uint8:
            raise EngineDirectoryError(f"{prefix}{_BITMASK} is {bits.dtype}, expected uint8")
        keep = np.unpackbits(bits, axis=-1, bitorder="little")
        if keep[:, k:].any():
            raise EngineDirectoryError(f"{prefix}{_BITMASK} has bits beyond input {k}")
        try:
            codes[name] = codes_from_keep(keep[:, :k].astype(bool))
        except ValueError as error:
            raise EngineDirectoryError(f"{prefix}{_BITMASK}: {error}") from error
    return codes


def _codes_of_values(
    checkpoint: Checkpoint, progress: Progress
) -> tuple[dict[str, Codes], dict[str, int]]:
    codes: dict[str, Codes] = {}
    dense: dict[str, int] = {}
    names = [name for name in checkpoint if _may_be_sparse(checkpoint, name)]
    for done, name in enumerate(names):
        progress("looking for 2:4 layers", done, len(names))
        size = np.abs(checkpoint.tensor(name).astype(np.float32))
        n, k = size.shape
        full = int((np.count_nonzero(size.reshape(n, k // GROUP, GROUP), axis=-1) > 2).sum())
        layer = name.removesuffix(".weight")
        if full:
            dense[layer] = full
        else:
            codes[layer] = project(size)
        checkpoint.release(name)
    return codes, dense


def _closest(dense: dict[str, int]) -> str:
    if not dense:
        return ", nor any other linear layer"
    name = min(dense, key=lambda layer: dense[layer])
    return (
        f"; the closest, {name}, has {dense[name]} groups that keep more than two of four weights"
    )


def _may_be_sparse(checkpoint: Checkpoint, name: str) -> bool:
    shape = checkpoint.spec(name).shape
    return (
        name.endswith(".weight")
        and len(shape) == 2
        and shape[1] % GROUP == 0
        and not any(part in name for part in _NEVER_SPARSE)
    )


def _write_model(
    checkpoint: Checkpoint,
    compressed: dict[str, str],
    codes: dict[str, Codes],
    model: Path,
    progress: Progress,
) -> None:
    parts = {p + s for p in compressed.values() for s in (_BITMASK, _COMPRESSED, _SHAPE)}
    specs = {name: checkpoint.spec(name) for name in checkpoint if name not in parts}
    for name, prefix in compressed.items():
        dtype = checkpoint.tensor(prefix + _COMPRESSED).dtype
        specs[f"{name}.weight"] = TensorSpec(dtype, _shape(checkpoint, prefix))
    with TensorWriter(model / "model.safetensors", specs, {"format": "pt"}) as writer:
        for done, name in enumerate(specs):
            progress("writing the model", done, len(specs))
            layer = name.removesuffix(".weight")
            if layer in compressed:
                values = _decompress(checkpoint, compressed[layer], codes[layer])
            else:
                values = checkpoint.raw(name)
            if layer in codes:
                values = np.where(values == 0, np.zeros_like(values), values)
            writer.write(name, values)
    copy_text_files(checkpoint.directory, model)
    config = {k: v for k, v in checkpoint.config.items() if k not in QUANTIZATION_KEYS}
    (model / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _decompress(checkpoint: Checkpoint, prefix: str, codes: Codes) -> npt.NDArray[Any]:
    keep = keep_from_codes(codes)
    values = checkpoint.tensor(prefix + _COMPRESSED)
    dense = np.zeros(keep.shape, values.dtype)
    dense[keep] = values.reshape(-1)  # both in row-major order
    return dense
