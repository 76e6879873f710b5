"""Packing and products of 2:4 sparse and dense weights."""

from typing import Annotated

import numpy
from numpy.typing import NDArray


class PackedLayer:
    """
    The native side of an `engines.native.layout.PackedWeights`; shares its bytes.
    """

    def __init__(self, layout: int, n: int, k: int, data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

class PatchArrays:
    """The native side of an `engines.native.patch.Patch`; shares its arrays."""

    def __init__(self, n: int, k: int, row_start: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], group: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], codes: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], delta: Annotated[NDArray[numpy.uint16], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> None: ...

LAYOUT_VERSION: int = 1

def isa() -> str:
    """The instruction set of this process; ValueError for a bad TWOFOUR_ISA."""

def supported_isas() -> list[str]:
    """What this build and this machine have, slowest first."""

def packed_bytes(layout: int, n: int, k: int) -> int:
    """Bytes of an n x k layer."""

def kernel_name(layout: int, tokens: int, isa: str | None) -> str:
    """Which kernel multiplies `tokens` tokens."""

def linear(layer: PackedLayer, x: Annotated[NDArray, dict(shape=(None, None), order='C', device='cpu', writable=False)], y: Annotated[NDArray, dict(shape=(None, None), order='C', device='cpu')], bias: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, add: bool, threads: int, isa: str | None) -> None:
    """y = x W^T (+ bias), or added to y."""

def linear_at(arg0: int, arg1: int, arg2: int, arg3: int, arg4: int, arg5: int, arg6: int, arg7: bool, arg8: int, arg9: int, arg10: int, /) -> None:
    """
    `linear` by address, (layout, n, k, data, bytes, x, y, is_bf16, tokens, bias or 0,
    threads): making arrays of torch's tensors takes longer than a small product. The caller
    answers for x (tokens x k) and y (tokens x n), both bf16 or both float32, and the bias.
    """

def gated(gate: PackedLayer, up: PackedLayer, x: Annotated[NDArray, dict(shape=(None, None), order='C', device='cpu', writable=False)], y: Annotated[NDArray, dict(shape=(None, None), order='C', device='cpu')], threads: int, isa: str | None) -> None:
    """y = silu(x gate^T) * (x up^T)."""

def pack(layout: int, dense: Annotated[NDArray[numpy.uint16], dict(shape=(None, None), order='C', device='cpu', writable=False)], codes: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None, packed: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')], threads: int) -> bool:
    """Packs (n, k) weights; False if a code is no pattern."""

def unpack(layer: PackedLayer, dense: Annotated[NDArray[numpy.uint16], dict(shape=(None, None), order='C', device='cpu')], codes: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu')] | None, threads: int) -> None:
    """The inverse of `pack`, into (n, k) weights and (n, k / 4) codes."""

def check(layer: PackedLayer, threads: int) -> tuple[int, int, int, int]:
    """
    (fault, row, group, value): 0 none, 1 a code that is no pattern, 2 padding not zero.
    """

def patch_apply(patch: PatchArrays, packed: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')], revert: bool, threads: int) -> bool:
    """
    Rewrites packed weights; False, and nothing changed, if they hold another mask.
    """

def patch_add(patch: PatchArrays, x: Annotated[NDArray, dict(shape=(None, None), order='C', device='cpu', writable=False)], which: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], y: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], threads: int, isa: str | None) -> None:
    """Adds the patch's product to the rows `which` of y."""

def read(data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], threads: int, isa: str | None) -> int:
    """Reads the bytes once; the result only keeps the loads alive."""
