"""Model directories with changed weights: what a mask drops set to zero, or new values.

Tensors are read and written one at a time; those that do not change, and every file beside the
weights, stay what they were. Needs no torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from maskgen.format.checkpoint_files import checkpoint_files
from maskgen.format.container import TensorBytes, TensorEntry, read_header, write_tensors
from maskgen.format.coverage import decoder_weights
from maskgen.format.digests import base_digest, tensors_digest
from maskgen.format.mask import Mask, MaskFileError, check_base
from maskgen.format.staging import new_directory
from maskgen.format.weight_files import StoredTensor, stored_tensors, weight_files

Weight = npt.NDArray[Any]
_NUMPY_DTYPES = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one tensor of a model.

    Attributes:
        shape: that it must have.
        make: gives its new values; may change the old ones in place.
        new_shape: of those; None if it stays what it was.
    """

    shape: tuple[int, ...]
    make: Callable[[Weight], Weight]
    new_shape: tuple[int, ...] | None = None

    @classmethod
    def to(cls, values: npt.NDArray[np.floating]) -> Change:
        """The tensor gets these values, rounded to the type of the checkpoint."""

        def make(stored: Weight) -> Weight:
            stored[...] = values
            return stored

        return cls(values.shape, make)


def with_decoder_weights(mask: Mask, model_dir: Path) -> Mask:
    """`mask`, with the decoder's weights counted in the model's own files.

    Raises:
        ModelDirectoryError: the files are missing or malformed.
    """
    shapes = {name: stored.entry.shape for name, stored in stored_tensors(model_dir).items()}
    return replace(mask, decoder_weights=decoder_weights(shapes, mask.codes))


def apply_mask(model_dir: Path, mask: Mask, out: Path) -> str:
    """Copy a model directory with the weights that `mask` drops set to zero.

    Returns:
        The new directory's base digest.

    Raises:
        MaskFileError: the mask belongs to another model.
        FileExistsError: `out` exists.
    """
    check_base(mask, base_digest(model_dir), str(model_dir))

    def drop(name: str) -> Callable[[Weight], Weight]:
        def change(weight: Weight) -> Weight:
            weight[~mask.keep(name)] = 0
            return weight

        return change

    changes = {f"{name}.weight": Change(mask.shapes[name], drop(name)) for name in mask.codes}
    return rewrite_weights(model_dir, out, changes)


def rewrite_weights(
    model_dir: Path,
    out: Path,
    changes: Mapping[str, Change],
    finish: Callable[[Path, str], None] = lambda folder, digest: None,
) -> str:
    """Copy a model directory and change some weights in the copy, which appears complete or not.

    Args:
        model_dir: source.
        out: must not exist.
        changes: tensor name -> what becomes of it.
        finish: called with the copy and its base digest before it appears: may add files, or raise.

    Returns:
        The new directory's base digest.

    Raises:
        FileExistsError: `out` exists.
        MaskFileError: a tensor is missing, or its shape or type is not as expected.
    """
    stored = stored_tensors(model_dir)
    _refuse_missing(changes.keys() - stored.keys())
    weights = weight_files(model_dir)
    with new_directory(out) as scratch:
        for source in checkpoint_files(model_dir):
            copy = scratch / source.relative_to(model_dir)
            copy.parent.mkdir(exist_ok=True)
            if source not in weights:
                shutil.copy(source, copy)
                continue
            with source.open("rb") as file:
                metadata = read_header(file).metadata
            own = {name: tensor for name, tensor in stored.items() if tensor.file == source}
            write_tensors(copy, metadata, _changed(own, changes))
        digest = base_digest(scratch)
        finish(scratch, digest)
        return digest


def rewritten_digest(model_dir: Path, changes: Mapping[str, Change]) -> str:
    """The base digest that `rewrite_weights` would give, without writing anything.

    Raises:
        MaskFileError: as there.
    """
    stored = stored_tensors(model_dir)
    _refuse_missing(changes.keys() - stored.keys())
    return tensors_digest(_changed(stored, changes))


def _changed(
    stored: Mapping[str, StoredTensor], changes: Mapping[str, Change]
) -> dict[str, TensorBytes]:
    return {name: _new_tensor(name, tensor, changes.get(name)) for name, tensor in stored.items()}


def _new_tensor(name: str, tensor: StoredTensor, change: Change | None) -> TensorBytes:
    if change is None:
        return tensor.source
    shape = change.new_shape or change.shape

    def chunks() -> list[memoryview]:
        values = np.ascontiguousarray(change.make(read_weight(name, tensor, change.shape)))
        if values.shape != shape:
            raise ValueError(f"{name} became {list(values.shape)}, expected {list(shape)}")
        return [values.reshape(-1).view(np.uint8).data]

    return TensorBytes(tensor.entry.dtype, shape, chunks)


def read_weight(name: str, tensor: StoredTensor, shape: tuple[int, ...]) -> Weight:
    """A tensor's values, in memory.

    Raises:
        MaskFileError: its shape or type is not as expected.
    """
    raw = np.frombuffer(bytearray().join(tensor.chunks()), dtype=np.uint8)
    return _view(raw, name, tensor.entry, shape)


def _refuse_missing(names: Collection[str]) -> None:
    if names:
        raise MaskFileError(f"the model has no tensor {min(names)}, which was to change")


def _view(
    raw: npt.NDArray[np.uint8], name: str, entry: TensorEntry, shape: tuple[int, ...]
) -> Weight:
    if entry.shape != shape:
        raise MaskFileError(f"{name} is {list(entry.shape)}, expected {list(shape)}")
    if entry.dtype not in _NUMPY_DTYPES:
        raise MaskFileError(
            f"{name} is {entry.dtype}; weights that can change are {', '.join(_NUMPY_DTYPES)}"
        )
    values: Weight = raw.view(_NUMPY_DTYPES[entry.dtype])
    return values.reshape(shape)
