"""Values files: int8 or int4 numbers of a model's linear layers, made elsewhere than in a build.

A safetensors file with, for every layer, `<layer>.values` (I8, N x K: int8 values or int4 levels),
`<layer>.scales` (F16, N x blocks) and, where blocks have minima, `<layer>.minima` (I8, N x blocks).
What the numbers mean is in docs/formats.md, "Packed int8 and int4 weights".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from maskgen.format.container import ContainerError, read_header, write_container

FORMAT, VERSION = "twofour-values", "1"
_DIGEST = re.compile(r"[0-9a-f]{64}")


class ValuesFileError(ValueError):
    """A values file is malformed, or does not belong to what it is used with."""


@dataclass(frozen=True, eq=False)
class LayerValues:
    """One linear layer's numbers.

    Attributes:
        values: (N, K) int8.
        scales: (N, blocks) float16.
        minima: (N, blocks) int8, or None.
    """

    values: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float16]
    minima: npt.NDArray[np.int8] | None


@dataclass(frozen=True, slots=True)
class ValuesHeader:
    """What a values file is.

    Attributes:
        base_digest: of the model.
        mask_digest: of the mask whose kept weights the values were made for; None for none.
        values: `int8` or `int4`.
        block: inputs of a row that share a scale.
        minima: whether int4 blocks have minima of their own.
        quantiser: how numbers were chosen: `gptq`.
        calibration_digest: of the text that errors were weighed on.
    """

    base_digest: str
    mask_digest: str | None
    values: str
    block: int
    minima: bool
    quantiser: str
    calibration_digest: str


def write_values(
    path: Path, header: ValuesHeader, layers: Iterable[tuple[str, LayerValues]]
) -> None:
    """Write a values file, whole or not at all."""
    tensors: dict[str, npt.NDArray[np.int8] | npt.NDArray[np.float16]] = {}
    for name, layer in layers:
        tensors[f"{name}.values"] = layer.values
        tensors[f"{name}.scales"] = layer.scales
        if layer.minima is not None:
            tensors[f"{name}.minima"] = layer.minima
    metadata = {
        "format": FORMAT,
        "format_version": VERSION,
        "base_digest": header.base_digest,
        "values": header.values,
        "block": str(header.block),
        "minima": "true" if header.minima else "false",
        "quantiser": header.quantiser,
        "calibration_digest": header.calibration_digest,
    }
    if header.mask_digest is not None:
        metadata["mask_digest"] = header.mask_digest
    write_container(path, metadata, tensors)


def read_values_header(path: Path) -> ValuesHeader:
    """What a values file says of itself; its numbers are not read.

    Raises:
        ValuesFileError: it is malformed, or of a newer version.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        found = _metadata(path, file)
    if found.get("format") != FORMAT:
        raise ValuesFileError(f"{path} is no values file: its metadata does not say so")
    if found.get("format_version") != VERSION:
        raise ValuesFileError(
            f"{path}: format version {found.get('format_version')!r:.40} is not {VERSION};"
            " update twofour"
        )
    accepted = {
        "values": ("int8", "int4"),
        "block": ("32", "64", "128"),
        "minima": ("true", "false"),
        "quantiser": ("gptq",),
    }
    for field, known in accepted.items():
        if found.get(field) not in known:
            raise ValuesFileError(
                f"{path}: {field} is {found.get(field)!r:.40}, expected {', '.join(known)}"
            )
    for field in ("base_digest", "calibration_digest", *({"mask_digest"} & found.keys())):
        if not _DIGEST.fullmatch(found.get(field, "")):
            raise ValuesFileError(f"{path}: {field} is no SHA-256")
    return ValuesHeader(
        base_digest=found["base_digest"],
        mask_digest=found.get("mask_digest"),
        values=found["values"],
        block=int(found["block"]),
        minima=found["minima"] == "true",
        quantiser=found["quantiser"],
        calibration_digest=found["calibration_digest"],
    )


def _metadata(path: Path, file: IO[bytes]) -> dict[str, str]:
    try:
        return read_header(file).metadata
    except ContainerError as error:
        raise ValuesFileError(f"{path} is no values file: {error}") from None
