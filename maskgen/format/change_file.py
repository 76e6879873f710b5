"""What files of exact changes to one base model have in common: transforms, and structures.

A safetensors file with tensors `NAME.KIND`, whose metadata names the base model, the model that the
change makes of it, and a digest of the content. Small, the same bytes for the same content. Needs
no torch.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskgen.format.container import ContainerError, Header, read_header, write_container
from maskgen.format.versions import FORMAT_VERSION, FormatVersionError, required_features

Arrays = Mapping[str, npt.NDArray[Any]]
"""`NAME.KIND` -> values."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = r"[a-z0-9_]+(?:\.[a-z0-9_]+)*"
_DTYPES: Mapping[str, type[np.generic]] = {"U16": np.uint16, "F32": np.float32}


@dataclass(frozen=True, slots=True)
class ChangeFormat:
    """One kind of such files.

    Attributes:
        what: `transform` or `structure`, as messages call it.
        kinds: kind of a tensor -> its type and number of dimensions.
        features: that a file may require.
        error: raised for files that are no good.
    """

    what: str
    kinds: Mapping[str, tuple[str, int]]
    features: Collection[str]
    error: type[ValueError]

    @property
    def name(self) -> str:
        """In the metadata of a file."""
        return f"twofour-{self.what}"

    @property
    def digest_field(self) -> str:
        """That holds the digest of the content."""
        return f"{self.what}_digest"


@dataclass(frozen=True, slots=True)
class ChangeRecord:
    """Which models a change belongs to, and where it comes from.

    Attributes:
        base_digest: of the model that it changes.
        architecture: that model's type.
        method: how it was found.
        seed: of the random numbers that went into it.
        calibration_digest: SHA-256 of the text that it was found on; None if it took none.
        result_digest: base digest of the changed model; None until that was computed.
    """

    base_digest: str
    architecture: str
    method: str
    seed: int
    calibration_digest: str | None = None
    result_digest: str | None = None


def content_digest(base_digest: str, arrays: Arrays) -> str:
    """SHA-256 of a base digest and all arrays."""
    sha = hashlib.sha256(f"{base_digest}\n".encode())
    for name, array in sorted(arrays.items()):
        sha.update(f"{name}\n{','.join(map(str, array.shape))}\n".encode())
        sha.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
    return sha.hexdigest()


def write_change(
    path: Path, form: ChangeFormat, record: ChangeRecord, arrays: Arrays, required: list[str]
) -> None:
    """Write a file atomically.

    Args:
        required: features that a reader needs.

    Raises:
        ValueError: the digest of its result is not known yet.
    """
    if record.result_digest is None:
        raise form.error(f"a {form.what} is written with the digest of the model that it makes")
    metadata = {
        "format": form.name,
        "format_version": str(FORMAT_VERSION),
        "required_features": json.dumps(required),
        "base_digest": record.base_digest,
        "result_digest": record.result_digest,
        "architecture": record.architecture,
        "method": record.method,
        "seed": str(record.seed),
        form.digest_field: content_digest(record.base_digest, arrays),
    }
    if record.calibration_digest is not None:
        metadata["calibration_digest"] = record.calibration_digest
    write_container(path, metadata, arrays)


def read_change(path: Path, form: ChangeFormat) -> tuple[ChangeRecord, dict[str, Any]]:
    """Read a file, checking every field and the digest of what was read.

    Raises:
        ValueError: (`form.error`) the file is missing, truncated, corrupted, foreign, or newer than
            this reader.
        OSError: the file cannot be opened.
    """
    if not path.is_file():
        raise form.error(f"there is no {form.what} file {path}")
    with path.open("rb") as file:
        try:
            header = read_header(file)
            metadata = _check_metadata(header.metadata, form)
            _check_tensors(header, form)
            arrays: dict[str, npt.NDArray[Any]] = {}
            for name, entry in header.tensors.items():
                file.seek(entry.start)
                dtype = np.dtype(_DTYPES[entry.dtype])
                raw = np.frombuffer(file.read(entry.end - entry.start), dtype.newbyteorder("<"))
                arrays[name] = raw.astype(dtype).reshape(entry.shape)
        except ContainerError as error:
            raise form.error(f"{path} is not a {form.what} file: {error}") from None
        except (form.error, FormatVersionError) as error:
            raise form.error(f"{path}: {error}") from None
    if content_digest(metadata["base_digest"], arrays) != metadata[form.digest_field]:
        raise form.error(f"{path}: its content does not have the digest it states; corrupted")
    record = ChangeRecord(
        metadata["base_digest"],
        metadata["architecture"],
        metadata["method"],
        int(metadata["seed"]),
        metadata.get("calibration_digest"),
        metadata["result_digest"],
    )
    return record, arrays


def _check_metadata(metadata: dict[str, str], form: ChangeFormat) -> dict[str, str]:
    required_features(metadata, form.name, form.features)
    digests = ("base_digest", "result_digest", form.digest_field)
    needed = (*digests[:2], "architecture", "method", "seed", digests[2])
    if missing := [key for key in needed if key not in metadata]:
        raise form.error(f"its metadata lacks {', '.join(missing)}")
    for field in (*digests, "calibration_digest"):
        if not _DIGEST.fullmatch(metadata.get(field, "0" * 64)):
            raise form.error(f"{field} {metadata[field]!r:.80} is not a SHA-256 in hexadecimal")
    if not re.fullmatch(r"0|[1-9][0-9]{0,19}", metadata["seed"]):
        raise form.error(f"seed {metadata['seed']!r:.40} is not an integer")
    return metadata


def _check_tensors(header: Header, form: ChangeFormat) -> None:
    pattern = re.compile(rf"{_NAME}\.({'|'.join(form.kinds)})")
    for name, entry in header.tensors.items():
        match = pattern.fullmatch(name)
        if match is None:
            kinds = " nor a ".join(form.kinds)
            raise form.error(f"tensor {name!r:.80} is neither a {kinds}")
        dtype, axes = form.kinds[match[1]]
        if entry.dtype != dtype or len(entry.shape) != axes:
            raise form.error(
                f"tensor {name:.80} is {entry.dtype} {list(entry.shape)}, expected {dtype} of"
                f" {axes} dimensions"
            )
