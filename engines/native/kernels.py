"""Products of packed weights with activations, as numpy functions over the native kernels.

    y[token, row] = sum over inputs of W[row, input] * bf16(x[token, input])        (fp32 sums)

Activations are rounded to bf16 on entry. Each output is one chain of additions in rising order of
inputs, so a token's result does not depend on the other tokens, on threads or on blocking: equal
bits for equal input, on one instruction set. The GIL is released while a kernel runs.

The instruction set is chosen once per process, the best that the CPU has, or what the environment
variable TWOFOUR_ISA names: `avx512_bf16`, `avx512`, `avx2` or `portable`. Learning
(`maskgen.learning.native`) chooses by the same rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.errors import EngineError
from engines.native import _native
from engines.native.layout import BF16, Layout, PackedWeights


class KernelError(EngineError, ValueError):
    """A kernel was asked for something that it cannot do."""


def isa() -> str:
    """The instruction set that products use.

    Raises:
        KernelError: TWOFOUR_ISA names none, or one that this machine or this build lacks.
    """
    try:
        return _native.isa()
    except ValueError as error:
        raise KernelError(str(error)) from None


def supported_isas() -> tuple[str, ...]:
    """Instruction sets that this build and this machine have, slowest first."""
    return tuple(_native.supported_isas())


def kernel_name(layout: Layout, tokens: int, isa: str | None = None) -> str:
    """Which kernel multiplies `tokens` tokens, for reports."""
    return _native.kernel_name(int(layout), tokens, isa)


def linear(
    weights: PackedWeights,
    x: npt.NDArray[Any],
    *,
    bias: npt.NDArray[np.float32] | None = None,
    out: npt.NDArray[Any] | None = None,
    add: bool = False,
    threads: int = 0,
    isa: str | None = None,
) -> npt.NDArray[Any]:
    """x W^T (+ bias), sparse or dense by the weights' layout.

    Args:
        weights: n x k.
        x: (tokens, k), float32 or bf16.
        bias: (n,) float32.
        out: (tokens, n), float32 or bf16, contiguous; made (float32) if None.
        add: add to `out` (float32) instead of overwriting it.
        threads: 0 uses OpenMP's own number.
        isa: an instruction set other than the process's, for tests and benchmarks.

    Raises:
        KernelError: shapes, dtypes or the instruction set do not fit.
    """
    if out is None:
        if add:
            raise KernelError("add=True needs the array to add to (out=...)")
        out = np.empty((len(x), weights.n), np.float32)
    with native_errors():
        _native.linear(
            weights.native,
            matrix_bits(x, "x"),
            matrix_bits(out, "out"),
            bias,
            add,
            threads,
            isa,
        )
    return out


def gated(
    gate: PackedWeights,
    up: PackedWeights,
    x: npt.NDArray[Any],
    *,
    out: npt.NDArray[Any] | None = None,
    threads: int = 0,
    isa: str | None = None,
) -> npt.NDArray[Any]:
    """silu(x Wgate^T) * (x Wup^T) in one pass; arguments as for `linear`.

    Raises:
        KernelError: as `linear`, or the two layers differ in shape or layout.
    """
    if (gate.layout, gate.n, gate.k) != (up.layout, up.n, up.k):
        raise KernelError(
            f"gate is {gate.layout.name} {gate.n} x {gate.k} but up is "
            f"{up.layout.name} {up.n} x {up.k}; they must agree"
        )
    if out is None:
        out = np.empty((len(x), gate.n), np.float32)
    with native_errors():
        _native.gated(
            gate.native,
            up.native,
            matrix_bits(x, "x"),
            matrix_bits(out, "out"),
            threads,
            isa,
        )
    return out


def read(data: npt.NDArray[np.uint8], *, threads: int = 0, isa: str | None = None) -> None:
    """Reads `data` once with vector loads: what bandwidth shares are measured against."""
    with native_errors():
        _native.read(data, threads, isa)


def matrix_bits(array: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """A contiguous float32 matrix as it is, a bf16 one as uint16: what the native module takes."""
    if array.ndim != 2 or not array.flags.c_contiguous:
        raise KernelError(f"{name} must be a contiguous matrix, not {array.shape}")
    if array.dtype == BF16:
        return array.view(np.uint16)
    if array.dtype != np.float32:
        raise KernelError(f"{name} must be float32 or bfloat16, not {array.dtype}")
    return array


@contextmanager
def native_errors() -> Iterator[None]:
    """The native module's errors as KernelError."""
    try:
        yield
    except (ValueError, RuntimeError, TypeError) as error:
        raise KernelError(str(error)) from None
