"""Transform files: exact changes of basis of one base model, small, the same bytes for the same
content.

A transform file is a safetensors file with a tensor `GROUP.permutation` (uint16) or
`GROUP.rotation` (float32) for every group that it changes. docs/formats.md has the layout. Needs no
torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from maskgen.format.container import ContainerError, Header, read_header, write_container
from maskgen.format.versions import FORMAT_VERSION, FormatVersionError, required_features
from maskgen.transform.groups import Permutation, Rotation, TransformError

FORMAT = "twofour-transform"
ROTATION = "rotation"
"""Required by a file that turns channels."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_TENSOR = re.compile(r"([a-z0-9_]+(?:\.[a-z0-9_]+)*)\.(permutation|rotation)")
_KINDS: Mapping[str, tuple[str, type[np.generic], int]] = {
    "permutation": ("U16", np.uint16, 2),
    "rotation": ("F32", np.float32, 3),
}
_REQUIRED = ("base_digest", "result_digest", "architecture", "method", "seed", "transform_digest")


@dataclass(frozen=True, eq=False)
class Transform:
    """Permutations and rotations of one base model's channels.

    In a group that has both, the rotation comes first. A group that neither names stays as it is.

    Attributes:
        permutations: group name -> uint16 (blocks, size).
        rotations: group name -> float32 (blocks, size, size).
        base_digest: of the model that it changes.
        architecture: that model's type.
        method: how it was found.
        seed: of the random numbers that went into it.
        calibration_digest: SHA-256 of the text that it was found on; None if it took none.
        result_digest: base digest of the changed model; None until that was computed.
    """

    permutations: Mapping[str, Permutation]
    rotations: Mapping[str, Rotation]
    base_digest: str
    architecture: str
    method: str
    seed: int
    calibration_digest: str | None = None
    result_digest: str | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of base digest, permutations and rotations."""
        sha = hashlib.sha256(f"{self.base_digest}\n".encode())
        for name, array in sorted(self.tensors().items()):
            sha.update(f"{name}\n{','.join(map(str, array.shape))}\n".encode())
            sha.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
        return sha.hexdigest()

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        """All arrays, named as in the file."""
        named = {f"{name}.permutation": array for name, array in self.permutations.items()}
        return {**named, **{f"{name}.rotation": array for name, array in self.rotations.items()}}

    def with_result(self, digest: str) -> Transform:
        """The same, with the digest of the model that it makes."""
        return replace(self, result_digest=digest)


def write_transform(path: Path, transform: Transform) -> None:
    """Write a transform file atomically.

    Raises:
        TransformError: the digest of its result is not known yet.
    """
    if transform.result_digest is None:
        raise TransformError("a transform is written with the digest of the model that it makes")
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "required_features": json.dumps([ROTATION] if transform.rotations else []),
        "base_digest": transform.base_digest,
        "result_digest": transform.result_digest,
        "architecture": transform.architecture,
        "method": transform.method,
        "seed": str(transform.seed),
        "transform_digest": transform.digest,
    }
    if transform.calibration_digest is not None:
        metadata["calibration_digest"] = transform.calibration_digest
    write_container(path, metadata, transform.tensors())


def read_transform(path: Path) -> Transform:
    """Read a transform file, checking every field and the digest of what was read.

    Raises:
        TransformError: the file is truncated, corrupted, foreign, or newer than this reader.
        OSError: the file cannot be opened.
    """
    if not path.is_file():
        raise TransformError(f"there is no transform file {path}")
    with path.open("rb") as file:
        try:
            header = read_header(file)
            metadata = _check_metadata(header.metadata)
            arrays: dict[str, dict[str, Any]] = {"permutation": {}, "rotation": {}}
            for name, (group, kind) in _check_tensors(header).items():
                entry = header.tensors[name]
                file.seek(entry.start)
                dtype = np.dtype(_KINDS[kind][1]).newbyteorder("<")
                raw = np.frombuffer(file.read(entry.end - entry.start), dtype=dtype)
                arrays[kind][group] = raw.astype(_KINDS[kind][1]).reshape(entry.shape)
        except ContainerError as error:
            raise TransformError(f"{path} is not a transform file: {error}") from None
        except (TransformError, FormatVersionError) as error:
            raise TransformError(f"{path}: {error}") from None
    transform = Transform(
        arrays["permutation"],
        arrays["rotation"],
        base_digest=metadata["base_digest"],
        architecture=metadata["architecture"],
        method=metadata["method"],
        seed=int(metadata["seed"]),
        calibration_digest=metadata.get("calibration_digest"),
        result_digest=metadata["result_digest"],
    )
    if transform.digest != metadata["transform_digest"]:
        raise TransformError(f"{path}: its content does not have the digest it states; corrupted")
    return transform


def _check_metadata(metadata: dict[str, str]) -> dict[str, str]:
    required_features(metadata, FORMAT, (ROTATION,))
    if missing := [key for key in _REQUIRED if key not in metadata]:
        raise TransformError(f"its metadata lacks {', '.join(missing)}")
    for field in ("base_digest", "result_digest", "transform_digest", "calibration_digest"):
        if not _DIGEST.fullmatch(metadata.get(field, "0" * 64)):
            raise TransformError(f"{field} {metadata[field]!r:.80} is not a SHA-256 in hexadecimal")
    if not re.fullmatch(r"0|[1-9][0-9]{0,19}", metadata["seed"]):
        raise TransformError(f"seed {metadata['seed']!r:.40} is not an integer")
    return metadata


def _check_tensors(header: Header) -> dict[str, tuple[str, str]]:
    """Tensor name -> group and kind."""
    found = {}
    for name, entry in header.tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise TransformError(f"tensor {name!r:.80} is neither a permutation nor a rotation")
        dtype, _, axes = _KINDS[match[2]]
        if entry.dtype != dtype or len(entry.shape) != axes:
            raise TransformError(
                f"tensor {name:.80} is {entry.dtype} {list(entry.shape)}, expected {dtype} of"
                f" {axes} dimensions"
            )
        found[name] = (match[1], match[2])
    return found
