"""Model directories with changed weights: what a mask drops set to zero, or new values.

Works in place on copies of the safetensors files, so that every other tensor, and every file beside
them, stays what it was. Needs no torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from maskgen.format.checkpoint_files import checkpoint_files
from maskgen.format.container import ContainerError, TensorEntry, read_header
from maskgen.format.coverage import decoder_weights
from maskgen.format.digests import base_digest, tensors_digest
from maskgen.format.mask import Mask, MaskFileError
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
        make: changes its values in place.
    """

    shape: tuple[int, ...]
    make: Callable[[Weight], None]

    @classmethod
    def to(cls, values: npt.NDArray[np.floating]) -> Change:
        """The tensor gets these values, rounded to the type of the checkpoint."""

        def make(stored: Weight) -> None:
            stored[...] = values

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
    check_base(model_dir, mask)

    def drop(name: str) -> Callable[[Weight], None]:
        def change(weight: Weight) -> None:
            weight[~mask.keep(name)] = 0

        return change

    changes = {f"{name}.weight": Change(mask.shapes[name], drop(name)) for name in mask.codes}
    return rewrite_weights(model_dir, out, changes)


def check_base(model_dir: Path, mask: Mask) -> None:
    """Raise MaskFileError unless the mask was made for the model in this directory."""
    digest = base_digest(model_dir)
    if mask.base_digest != digest:
        raise MaskFileError(
            f"the mask belongs to the base model {mask.base_digest[:16]}..., but {model_dir} is "
            f"{digest[:16]}...; use the model it was made for"
        )


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
    with new_directory(out) as scratch:
        for source in checkpoint_files(model_dir):
            copy = scratch / source.relative_to(model_dir)
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(source, copy)
        missing = set(changes)
        for path in weight_files(scratch):
            with path.open("rb") as file:
                try:
                    tensors = read_header(file).tensors
                except ContainerError as error:
                    raise ValueError(f"{path.name} is not a safetensors file: {error}") from None
            raw = np.memmap(path, dtype=np.uint8, mode="r+")
            for name in sorted(changes.keys() & tensors.keys()):
                entry = tensors[name]
                view = _view(raw[entry.start : entry.end], name, entry, changes[name].shape)
                changes[name].make(view)
                missing.discard(name)
            raw.flush()
        _refuse_missing(missing)
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

    def chunks(name: str, tensor: StoredTensor) -> Iterator[bytes | memoryview]:
        if name not in changes:
            yield from tensor.chunks()
            return
        weight = read_weight(name, tensor, changes[name].shape)
        changes[name].make(weight)
        yield weight.reshape(-1).view(np.uint8).data

    return tensors_digest((name, item.entry, chunks(name, item)) for name, item in stored.items())


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
