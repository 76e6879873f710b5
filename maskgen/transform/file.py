"""Transform files: exact changes of basis of one base model, small, the same bytes for the same
content.

A transform file is a safetensors file with a tensor `GROUP.permutation` (uint16) or
`GROUP.rotation` (float32) for every group that it changes. docs/formats.md has the layout. Needs no
torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from maskgen.format.change_file import (
    ChangeFormat,
    ChangeRecord,
    content_digest,
    read_change,
    write_change,
)
from maskgen.transform.groups import Permutation, Rotation, TransformError

ROTATION = "rotation"
"""Required by a file that turns channels."""

_FORM = ChangeFormat(
    "transform",
    {"permutation": ("U16", 2), "rotation": ("F32", 3)},
    (ROTATION,),
    TransformError,
)


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
        return content_digest(self.base_digest, self.tensors())

    @property
    def record(self) -> ChangeRecord:
        """Which models it belongs to, and where it comes from."""
        return ChangeRecord(
            self.base_digest,
            self.architecture,
            self.method,
            self.seed,
            self.calibration_digest,
            self.result_digest,
        )

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
    required = [ROTATION] if transform.rotations else []
    write_change(path, _FORM, transform.record, transform.tensors(), required)


def read_transform(path: Path) -> Transform:
    """Read a transform file, checking every field and the digest of what was read.

    Raises:
        TransformError: the file is truncated, corrupted, foreign, or newer than this reader.
        OSError: the file cannot be opened.
    """
    record, arrays = read_change(path, _FORM)
    found: dict[str, dict[str, Any]] = {kind: {} for kind in _FORM.kinds}
    for name, array in arrays.items():
        group, _, kind = name.rpartition(".")
        found[kind][group] = array
    return Transform(found["permutation"], found["rotation"], **asdict(record))
