"""Model directories with changed weights: what a mask drops set to zero, or new values.

Works in place on copies of the safetensors files, so that every other tensor, and every file beside
them, stays what it was. Needs no torch.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from maskgen.format.container import ContainerError, TensorEntry, read_header
from maskgen.format.coverage import decoder_weights
from maskgen.format.digests import base_digest
from maskgen.format.mask_file import Mask, MaskFileError
from maskgen.format.model_directory import stored_tensors, weight_files
from maskgen.format.placements import keep_from_codes
from maskgen.format.text_files import template_files

Weight = npt.NDArray[Any]
_NUMPY_DTYPES = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}


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
    digest = base_digest(model_dir)
    if mask.base_digest != digest:
        raise MaskFileError(
            f"the mask belongs to the base model {mask.base_digest[:16]}..., but {model_dir} is "
            f"{digest[:16]}...; use the model it was made for"
        )

    def drop(name: str) -> Callable[[Weight], None]:
        def change(weight: Weight) -> None:
            weight[~keep_from_codes(mask.codes[name])] = 0

        return change

    return rewrite_weights(
        model_dir, out, mask.shapes, {f"{name}.weight": drop(name) for name in mask.codes}
    )


def rewrite_weights(
    model_dir: Path,
    out: Path,
    shapes: dict[str, tuple[int, int]],
    changes: dict[str, Callable[[Weight], None]],
) -> str:
    """Copy a model directory and change some weights in the copy, which appears complete or not.

    Args:
        model_dir: source.
        out: must not exist.
        shapes: layer name -> expected (N, K).
        changes: tensor name -> what to do with its (N, K) values, in place.

    Returns:
        The new directory's base digest.

    Raises:
        FileExistsError: `out` exists.
        MaskFileError: a tensor is missing, or its shape or type is not as expected.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already; name a new directory")
    with _new_directory(out) as scratch:
        for source in sorted(model_dir.iterdir()):
            if source.is_file() and not source.name.startswith("."):
                shutil.copy(source, scratch / source.name)
        for source in template_files(model_dir):  # some are in a folder
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
                expected = shapes[name.removesuffix(".weight")]
                changes[name](_view(raw, name, tensors[name], expected))
                missing.discard(name)
            raw.flush()
        if missing:
            raise MaskFileError(f"the model has no tensor {min(missing)}, which the mask lists")
        return base_digest(scratch)


def _view(
    raw: npt.NDArray[np.uint8], name: str, entry: TensorEntry, shape: tuple[int, int]
) -> Weight:
    if entry.shape != shape:
        raise MaskFileError(f"{name} is {list(entry.shape)}, the mask is for {list(shape)}")
    if entry.dtype not in _NUMPY_DTYPES:
        raise MaskFileError(f"{name} is {entry.dtype}; masks apply to {', '.join(_NUMPY_DTYPES)}")
    values: Weight = raw[entry.start : entry.end].view(_NUMPY_DTYPES[entry.dtype])
    return values.reshape(shape)


@contextmanager
def _new_directory(out: Path) -> Iterator[Path]:
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    scratch.mkdir()
    try:
        yield scratch
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
