"""Mask files: what they hold, how they are read and written, and the digests that tie them.

A mask file is a safetensors file that stores, for each listed linear layer, the packed placement
codes, or, when the mask has a parent, only the entropy-coded difference to it. docs/formats.md
has the exact layout. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt

from maskgen.format import difference as delta
from maskgen.format import placements
from maskgen.format.container import (
    ContainerError,
    Header,
    TensorEntry,
    read_header,
    write_container,
)
from maskgen.format.digests import base_digest as base_digest
from maskgen.format.placements import Codes

FORMAT = "twofour-mask"
FORMAT_VERSION = 1
KNOWN_FEATURES = ("difference",)

_Scalar = TypeVar("_Scalar", np.uint8, np.uint32)
_Value = TypeVar("_Value", dict[str, Any], list[Any])
_INTEGER = re.compile(r"0|[1-9][0-9]{0,19}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LAYER_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_DIFFERENCE_DTYPES = {"words": "U32", "tables": "U32", "table_of_layer": "U8"}


class MaskFileError(ValueError):
    """A mask or mask file is malformed, or does not belong to what it is used with."""


@dataclass(frozen=True, eq=False)
class Mask:
    """A 2:4 mask of some linear layers of one base model; layers it does not list stay dense.

    Attributes:
        codes: layer name (a Hugging Face module name such as `model.layers.0.mlp.up_proj`) ->
            uint8 (N, K/4) placement codes of its (N, K) weight. Held sorted by name, read-only.
        base_digest: digest of the base model's tensors (`base_digest()`).
        method: what made the mask, as the registry names it.
        domain: what kind of text it was made for.
        calibration_digest: SHA-256 of the text it was made from; None if it took none.
        seed: of the random numbers that went into it.
        parent_digest: digest of the mask that this one is stored as a difference to.
        pattern: `2:4` is the only one so far.
        decoder_weights: weights of the decoder that the layers belong to, masked or not (see
            `maskgen.format.coverage`); None if the file does not say.

    Raises:
        MaskFileError: a field is malformed.
    """

    codes: Mapping[str, Codes]
    base_digest: str
    method: str
    domain: str
    calibration_digest: str | None
    seed: int
    parent_digest: str | None = None
    pattern: str = "2:4"
    decoder_weights: int | None = None

    def __post_init__(self) -> None:
        if self.pattern != "2:4":
            raise MaskFileError(f"pattern {self.pattern!r:.40} is not supported; only 2:4 is")
        _check_digest("base_digest", self.base_digest)
        if self.calibration_digest is not None:
            _check_digest("calibration_digest", self.calibration_digest)
        if self.parent_digest is not None:
            _check_digest("parent_digest", self.parent_digest)
        _check_label("method", self.method)
        _check_label("domain", self.domain)
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 64:
            raise MaskFileError(f"seed {self.seed!r} is not an integer from 0 to 2**64 - 1")
        if not self.codes:
            raise MaskFileError("a mask lists at least one layer; this one lists none")
        object.__setattr__(
            self, "codes", {name: _checked(name, self.codes[name]) for name in sorted(self.codes)}
        )
        if self.decoder_weights is not None and self.decoder_weights < self.weights:
            raise MaskFileError(
                f"the mask covers {self.weights} weights of a decoder of {self.decoder_weights}"
            )

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Layer name -> (N, K) of its weight."""
        return {
            name: (codes.shape[0], codes.shape[1] * placements.GROUP)
            for name, codes in self.codes.items()
        }

    @property
    def weights(self) -> int:
        """Weights that the mask covers, kept and dropped."""
        return sum(codes.size for codes in self.codes.values()) * placements.GROUP

    @cached_property
    def digest(self) -> str:
        """SHA-256 of pattern, base digest and every layer's name, shape and codes.

        Labels (method, domain, seed, ...) and the way of storage do not enter: masks that keep
        the same weights of the same model have the same digest.
        """
        sha = hashlib.sha256(f"{self.pattern}\n{self.base_digest}\n".encode())
        for name, (n, k) in self.shapes.items():
            sha.update(f"{name}\n{n},{k}\n".encode())
            sha.update(self.codes[name].data)
        return sha.hexdigest()


def write_mask(path: Path, mask: Mask, parent: Mask | None = None) -> None:
    """Write a mask file atomically; the same mask always gives the same bytes.

    Args:
        path: usually ends in `.safetensors`.
        mask: if it names a parent, `parent` is needed.
        parent: store only the difference to this mask.

    Raises:
        MaskFileError: the parent is missing, is another one than the mask names, has a parent
            itself, or covers other layers or another base model.
    """
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "pattern": mask.pattern,
        "method": mask.method,
        "domain": mask.domain,
        "base_digest": mask.base_digest,
        "seed": str(mask.seed),
        "mask_digest": mask.digest,
    }
    if mask.calibration_digest is not None:
        metadata["calibration_digest"] = mask.calibration_digest
    if mask.decoder_weights is not None:
        metadata["decoder_weights"] = str(mask.decoder_weights)
    if parent is None and mask.parent_digest is not None:
        raise MaskFileError(f"to write this mask its parent {mask.parent_digest} is needed")
    if parent is None:
        metadata["required_features"] = "[]"
        metadata["shapes"] = json.dumps(mask.shapes, separators=(",", ":"))
        tensors = {name: placements.pack_codes(codes) for name, codes in mask.codes.items()}
        write_container(path, metadata, tensors)
        return
    if mask.parent_digest not in (None, parent.digest):
        raise MaskFileError(f"the mask names the parent {mask.parent_digest}, not {parent.digest}")
    _check_parent(parent, mask.base_digest)
    if mask.shapes != parent.shapes:
        raise MaskFileError("the mask and its parent list other layers or shapes")
    metadata["required_features"] = '["difference"]'
    metadata["parent_digest"] = parent.digest
    coded = delta.encode(mask.codes, parent.codes)
    write_container(path, metadata, {name: getattr(coded, name) for name in _DIFFERENCE_DTYPES})


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
            metadata = _check_metadata(header.metadata)
            parent_digest = metadata.get("parent_digest")
            weights = metadata.get("decoder_weights")
            if parent_digest is None:
                codes = _read_alone(file, header)
            else:
                codes = _read_difference(file, header, _find_parent(path, parent, parent_digest))
            mask = Mask(
                codes=codes,
                base_digest=metadata["base_digest"],
                method=metadata["method"],
                domain=metadata["domain"],
                calibration_digest=metadata.get("calibration_digest"),
                seed=int(metadata["seed"]),
                parent_digest=parent_digest,
                pattern=metadata["pattern"],
                decoder_weights=int(weights) if weights is not None else None,
            )
        except ContainerError as error:
            raise MaskFileError(f"{path} is not a mask file: {error}") from None
        except ValueError as error:
            raise MaskFileError(f"{path}: {error}") from None
    if mask.digest != metadata["mask_digest"]:
        raise MaskFileError(f"{path}: its content does not have the digest it states; corrupted")
    return mask


def read_metadata(path: Path) -> dict[str, str]:
    """The checked metadata of a mask file, without its codes.

    Raises:
        MaskFileError: it is not a mask file, or newer than this reader.
        OSError: the file cannot be opened.
    """
    with _open(path) as file:
        try:
            return _check_metadata(read_header(file).metadata)
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


def _read_alone(file: IO[bytes], header: Header) -> dict[str, Codes]:
    shapes = _parse(header.metadata["shapes"], dict, "shapes")
    if shapes.keys() != header.tensors.keys():
        raise MaskFileError("its shapes and its tensors do not list the same layers")
    codes = {}
    for name, shape in shapes.items():
        _check_name(name)
        n, k = _check_shape(name, shape)
        entry = header.tensors[name]
        size = placements.packed_size(n * k // placements.GROUP)
        if (entry.dtype, entry.shape) != ("U8", (size,)):
            raise MaskFileError(
                f"layer {name}: {n}x{k} weights take {size} packed bytes, "
                f"but the file has {entry.dtype} {list(entry.shape)}"
            )
        packed = _read_tensor(file, entry, np.uint8)
        codes[name] = placements.unpack_codes(packed, (n, k // placements.GROUP))
    return codes


def _read_difference(file: IO[bytes], header: Header, parent: Mask) -> dict[str, Codes]:
    _check_parent(parent, header.metadata["base_digest"])
    found = {name: entry.dtype for name, entry in header.tensors.items()}
    if found != _DIFFERENCE_DTYPES:
        raise MaskFileError(
            f"a difference has the tensors {_DIFFERENCE_DTYPES}, this has {found!r:.200}"
        )
    if len(header.tensors["words"].shape) != 1:
        raise MaskFileError("the words of a difference are not a list")
    coded = delta.Difference(
        words=_read_tensor(file, header.tensors["words"], np.uint32),
        tables=_read_tensor(file, header.tensors["tables"], np.uint32),
        table_of_layer=_read_tensor(file, header.tensors["table_of_layer"], np.uint8),
    )
    return delta.decode(coded, parent.codes)


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


def _check_parent(parent: Mask, base: str) -> None:
    if parent.parent_digest is not None:
        raise MaskFileError("the parent has a parent itself; only a mask stored alone can be one")
    if parent.base_digest != base:
        raise MaskFileError(
            f"the mask is for the base model {base}, its parent for {parent.base_digest}"
        )


def _check_metadata(metadata: dict[str, str]) -> dict[str, str]:
    if metadata.get("format") != FORMAT:
        raise ContainerError("a safetensors file, but its metadata does not name a mask format")
    version = metadata.get("format_version")
    if version != str(FORMAT_VERSION):
        raise MaskFileError(
            f"format version {version!r:.40} is not {FORMAT_VERSION}; update twofour"
        )
    features = _parse(metadata.get("required_features", "[]"), list, "required_features")
    if unknown := [item for item in features if item not in KNOWN_FEATURES]:
        raise MaskFileError(f"it requires {unknown!r:.200}, which this version does not know")
    has_parent = "parent_digest" in metadata
    if has_parent != ("difference" in features):
        raise MaskFileError("a mask names a parent exactly when it requires 'difference'")
    required = ["pattern", "method", "domain", "base_digest", "seed", "mask_digest"]
    if missing := [
        key for key in [*required, *([] if has_parent else ["shapes"])] if key not in metadata
    ]:
        raise MaskFileError(f"its metadata lacks {', '.join(missing)}")
    for field in ("seed", "decoder_weights"):
        if not _INTEGER.fullmatch(metadata.get(field, "0")):
            raise MaskFileError(f"{field} {metadata[field][:40]!r} is not an integer")
    _check_digest("mask_digest", metadata["mask_digest"])
    if has_parent:
        _check_digest("parent_digest", metadata["parent_digest"])
    return metadata


def _check_shape(name: str, shape: Any) -> tuple[int, int]:
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(s) is int for s in shape):
        raise MaskFileError(f"layer {name}: shape {shape!r:.80} is not two integers")
    n, k = shape
    if n < 1 or k < 1 or n * k >= 1 << 48:
        raise MaskFileError(f"layer {name}: {n}x{k} is no possible weight")
    if k % placements.GROUP:
        raise MaskFileError(f"layer {name}: width {k} is not a multiple of {placements.GROUP}")
    return n, k


def _check_name(name: str) -> None:
    if len(name) > 512 or not _LAYER_NAME.fullmatch(name):
        raise MaskFileError(f"{name[:80]!r} is not a module name")


def _checked(name: str, codes: Codes) -> Codes:
    _check_name(name)
    if codes.ndim != 2 or not codes.size:
        raise MaskFileError(f"layer {name}: codes of shape {codes.shape}, expected (N, K/4)")
    try:
        placements.check_codes(codes)
    except ValueError as error:
        raise MaskFileError(f"layer {name}: {error}") from None
    fixed = np.ascontiguousarray(codes).view()
    fixed.flags.writeable = False
    return fixed


def _check_digest(field: str, value: object) -> None:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise MaskFileError(f"{field} {value!r:.80} is not a SHA-256 in hexadecimal")


def _check_label(field: str, value: object) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= 200 or not value.isprintable():
        raise MaskFileError(
            f"{field} {value!r:.80} is not a label of 1 to 200 printable characters"
        )


def _read_tensor(file: IO[bytes], entry: TensorEntry, dtype: type[_Scalar]) -> npt.NDArray[_Scalar]:
    file.seek(entry.start)
    data = file.read(entry.end - entry.start)
    return np.frombuffer(data, dtype=np.dtype(dtype).newbyteorder("<")).reshape(entry.shape)


def _parse(text: str, kind: type[_Value], what: str) -> _Value:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MaskFileError(f"its {what} are not JSON: {error}") from None
    if not isinstance(value, kind):
        raise MaskFileError(f"its {what} are not a JSON {kind.__name__}")
    return value
