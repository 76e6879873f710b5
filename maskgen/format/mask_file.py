"""Mask files: how masks are read and written. docs/formats.md has the exact layout.

A mask file is a safetensors file that stores, for each listed linear layer, the packed placement
codes, or, when the mask has a parent, only the entropy-coded difference to it. Nothing here needs
torch.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt

from maskgen.format import difference as delta
from maskgen.format import packing, swaps
from maskgen.format.atomic_file import check_output_file
from maskgen.format.container import (
    ContainerError,
    Header,
    TensorEntry,
    read_header,
    write_container,
)
from maskgen.format.mask import Mask, MaskFileError, check_layer_name
from maskgen.format.mask_metadata import check_metadata, metadata_of, parse_object
from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.placements import Codes

_Scalar = TypeVar("_Scalar", np.uint8, np.uint32)
_TABLES = {"words": "U32", "tables": "U32", "table_of_layer": "U8"}
_SWAPS = {"words": "U32", "shares": "U32"}


def write_mask(path: Path, mask: Mask, parent: Mask | None = None) -> None:
    """Write a mask file atomically; the same mask always gives the same bytes.

    Args:
        path: usually ends in `.safetensors`.
        mask: if it names a parent, `parent` is needed.
        parent: store only the difference to this mask.

    Raises:
        MaskFileError: the parent is missing, is another one than the mask names, has a parent
            itself, or has another pattern, other layers or another base model.
    """
    if parent is None and mask.parent_digest is not None:
        raise MaskFileError(f"to write this mask its parent {mask.parent_digest} is needed")
    if parent is None:
        packed = {
            name: packing.pack_codes(codes, mask.pattern) for name, codes in mask.codes.items()
        }
        write_container(path, metadata_of(mask, None), packed)
        return
    if mask.parent_digest not in (None, parent.digest):
        raise MaskFileError(f"the mask names the parent {mask.parent_digest}, not {parent.digest}")
    _check_parent(parent, mask.base_digest, mask.pattern)
    if mask.shapes != parent.shapes:
        raise MaskFileError("the mask and its parent list other layers or shapes")
    write_container(path, metadata_of(mask, parent), difference_tensors(mask, parent))


def difference_tensors(mask: Mask, parent: Mask) -> dict[str, npt.NDArray[Any]]:
    """What a file of `mask` holds when it names `parent`, a mask of the same pattern and layers."""
    if mask.pattern == TWO_FOUR:
        coded = delta.encode(mask.codes, parent.codes)
        return {name: getattr(coded, name) for name in _TABLES}
    swapped = swaps.encode(mask.codes, parent.codes, mask.pattern)
    return {name: getattr(swapped, name) for name in _SWAPS}


def read_mask(path: Path, parent: Path | None = None) -> Mask:
    """Read a mask file, checking every field and the digest of what was read.

    Args:
        path: the mask file.
        parent: file of the parent mask; without it the parent is looked for, by digest, among
            the mask files in the same folder, links out of which are not followed. Not read when
            the mask has no parent.

    Raises:
        MaskFileError: the file is truncated, corrupted, foreign, newer than this reader, or its
            parent is missing.
        OSError: the file cannot be opened.
    """
    with _open(path) as file:
        try:
            header = read_header(file)
            metadata = check_metadata(header.metadata)
            pattern = Pattern.parse(metadata["pattern"])
            parent_digest = metadata.get("parent_digest")
            weights = metadata.get("decoder_weights")
            if parent_digest is None:
                codes = _read_alone(file, header, pattern)
            else:
                given = _find_parent(path, parent, parent_digest)
                codes = _read_difference(file, header, given, pattern)
            mask = Mask(
                codes=codes,
                base_digest=metadata["base_digest"],
                method=metadata["method"],
                domain=metadata["domain"],
                calibration_digest=metadata.get("calibration_digest"),
                seed=int(metadata["seed"]),
                parent_digest=parent_digest,
                pattern=pattern,
                decoder_weights=int(weights) if weights is not None else None,
            )
        except ContainerError as error:
            raise MaskFileError(f"{path} is not a mask file: {error}") from None
        except ValueError as error:
            raise MaskFileError(f"{path}: {error}") from None
    if mask.digest != metadata["mask_digest"]:
        raise MaskFileError(f"{path}: its content does not have the digest it states; corrupted")
    return mask


def check_mask_output(path: Path, name: str = "--out") -> None:
    """Raise an OSError or ValueError unless a mask can be put at `path`.

    It may take the place of another mask, and of nothing else: not of a model's weights.
    """
    check_output_file(path, name)
    if not path.exists():
        return
    try:
        read_metadata(path)
    except MaskFileError as error:
        raise FileExistsError(f"{name} {path} exists and is no mask; name another file") from error


def read_metadata(path: Path) -> dict[str, str]:
    """The checked metadata of a mask file, without its codes.

    Raises:
        MaskFileError: it is not a mask file, or newer than this reader.
        OSError: the file cannot be opened.
    """
    with _open(path) as file:
        try:
            return check_metadata(read_header(file).metadata)
        except ContainerError as error:
            raise MaskFileError(f"{path} is not a mask file: {error}") from None
        except ValueError as error:
            raise MaskFileError(f"{path}: {error}") from None


def _open(path: Path) -> IO[bytes]:
    # Without O_NONBLOCK, opening a pipe waits for whoever writes to it. Only what was opened is
    # looked at: another file may take the path at any time.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise MaskFileError(f"{path} is not a regular file")
    return os.fdopen(descriptor, "rb")


def _read_alone(file: IO[bytes], header: Header, pattern: Pattern) -> dict[str, Codes]:
    shapes = parse_object(header.metadata["shapes"], "shapes")
    if shapes.keys() != header.tensors.keys():
        raise MaskFileError("its shapes and its tensors do not list the same layers")
    codes = {}
    for name, shape in shapes.items():
        check_layer_name(name)
        n, k = _check_shape(name, shape, pattern)
        entry = header.tensors[name]
        size = packing.packed_size(n * k // pattern.m, pattern)
        if (entry.dtype, entry.shape) != ("U8", (size,)):
            raise MaskFileError(
                f"layer {name}: {n}x{k} weights take {size} packed bytes, "
                f"but the file has {entry.dtype} {list(entry.shape)}"
            )
        packed = _read_tensor(file, entry, np.uint8)
        codes[name] = packing.unpack_codes(packed, (n, k // pattern.m), pattern)
    return codes


def _read_difference(
    file: IO[bytes], header: Header, parent: Mask, pattern: Pattern
) -> dict[str, Codes]:
    _check_parent(parent, header.metadata["base_digest"], pattern)
    expected = _TABLES if pattern == TWO_FOUR else _SWAPS
    found = {name: entry.dtype for name, entry in header.tensors.items()}
    if found != expected:
        raise MaskFileError(f"a difference has the tensors {expected}, this has {found!r:.200}")
    entries = header.tensors
    if len(entries["words"].shape) != 1:
        raise MaskFileError("the words of a difference are not a list")
    words = _read_tensor(file, entries["words"], np.uint32)
    if pattern != TWO_FOUR:
        shares = _read_tensor(file, entries["shares"], np.uint32)
        return swaps.decode(swaps.Swaps(words, shares), parent.codes, pattern)
    tables = _read_tensor(file, entries["tables"], np.uint32)
    table_of_layer = _read_tensor(file, entries["table_of_layer"], np.uint8)
    return delta.decode(delta.Difference(words, tables, table_of_layer), parent.codes)


def _find_parent(path: Path, parent: Path | None, digest: str) -> Mask:
    if parent is not None:
        mask = read_mask(parent)
        if mask.digest != digest:
            raise MaskFileError(f"its parent is {digest}, but {parent} is {mask.digest}")
        return mask
    folder = _real_folder(path)
    for candidate in sorted(path.parent.glob("*.safetensors")):
        if _real_folder(candidate) != folder:
            continue  # a link that leads out of the folder is not beside the mask
        try:
            metadata = read_metadata(candidate)
        except (MaskFileError, OSError):
            continue  # model weights, or masks of a newer version, may lie beside it
        if metadata["mask_digest"] == digest and "parent_digest" not in metadata:
            return read_mask(candidate)
    raise MaskFileError(
        f"its parent, the mask {digest}, is not in {path.parent}; name its file as the parent"
    )


def _real_folder(path: Path) -> Path:
    # Not Path.resolve(), which raises for links in a circle.
    return Path(os.path.realpath(path)).parent


def _check_parent(parent: Mask, base: str, pattern: Pattern) -> None:
    if parent.parent_digest is not None:
        raise MaskFileError("the parent has a parent itself; only a mask stored alone can be one")
    if parent.base_digest != base:
        raise MaskFileError(
            f"the mask is for the base model {base}, its parent for {parent.base_digest}"
        )
    if parent.pattern != pattern:
        raise MaskFileError(
            f"the mask is {pattern}, its parent {parent.pattern}; a difference needs one pattern"
        )


def _check_shape(name: str, shape: Any, pattern: Pattern) -> tuple[int, int]:
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(s) is int for s in shape):
        raise MaskFileError(f"layer {name}: shape {shape!r:.80} is not two integers")
    n, k = shape
    if n < 1 or k < 1 or n * k >= 1 << 48:
        raise MaskFileError(f"layer {name}: {n}x{k} is no possible weight")
    if k % pattern.m:
        raise MaskFileError(f"layer {name}: width {k} is not a multiple of {pattern.m}")
    return n, k


def _read_tensor(file: IO[bytes], entry: TensorEntry, dtype: type[_Scalar]) -> npt.NDArray[_Scalar]:
    file.seek(entry.start)
    data = file.read(entry.end - entry.start)
    return np.frombuffer(data, dtype=np.dtype(dtype).newbyteorder("<")).reshape(entry.shape)
