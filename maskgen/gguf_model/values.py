"""The values of a GGUF file's tensors, dequantised piece by piece."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType as Type
from gguf.quants import dequantize

from maskgen.gguf_model.header import GgufError, GgufHeader, GgufTensor

_PIECE_VALUES = 1 << 21

KEEPS_ZEROS = {
    *(Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q5_0, Type.Q8_0, Type.Q3_K, Type.Q6_K),
    *(Type.TQ1_0, Type.TQ2_0, Type.MXFP4, Type.NVFP4),
}
"""Types on whose grid lies zero. The others have a minimum per block, or tables without a zero."""


def zero_losing_matrices(header: GgufHeader) -> dict[str, int]:
    """How many matrices of the layers are stored in types that give back no zeros, by type."""
    return Counter(
        tensor.type.name
        for name, tensor in header.tensors.items()
        if name.startswith("blk.") and len(tensor.shape) == 2 and tensor.type not in KEEPS_ZEROS
    )


def pieces(
    path: Path, tensor: GgufTensor, rows_together: int = 1
) -> Iterator[npt.NDArray[np.float32]]:
    """A tensor's rows in order, some millions of values at a time.

    Args:
        path: the file.
        tensor: of one dimension, which counts as one row, or more, whose last is a row.
        rows_together: a piece has a multiple of so many rows.

    Yields:
        float32 (rows, width).

    Raises:
        GgufError: the file became shorter.
    """
    width = tensor.shape[-1]
    rows = int(np.prod(tensor.shape[:-1]))
    row_bytes = tensor.nbytes // rows
    step = max(1, _PIECE_VALUES // (width * rows_together)) * rows_together
    with path.open("rb", buffering=0) as file:
        file.seek(tensor.start)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            raw = bytearray(count * row_bytes)
            if file.readinto(raw) != len(raw):
                raise GgufError(f"{path} became shorter while it was read")
            stored = np.frombuffer(raw, np.uint8).reshape(count, row_bytes)
            yield dequantize(stored, tensor.type).reshape(count, width)
