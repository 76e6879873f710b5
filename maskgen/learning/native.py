"""Which implementation computes masks: the fused native kernels, or torch.

The native kernels (`maskgen/csrc`) hold for contiguous bfloat16 or float32 weights on the CPU, and
for 2:4 masks; the entropic top n for all whose M is a multiple of 4.
Everything else, and `kernels="torch"`, runs the torch functions, which draw the same noise. The
loss is not chosen: it has its native kernel wherever that is built and the model on the CPU.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Literal

import torch

from maskgen.format.pattern import TWO_FOUR, Pattern

Kernels = Literal["auto", "native", "torch"]


def built_module() -> ModuleType | None:
    """The compiled kernels, if there are any: the files of a checkout may run without."""
    try:
        return importlib.import_module("maskgen._native")
    except ModuleNotFoundError:
        return None


def native_module() -> ModuleType:
    """The compiled kernels.

    Raises:
        ValueError: they are not built, which only an unfinished checkout is without; or TWOFOUR_ISA
            names an instruction set that cannot be had.
    """
    native = built_module()
    if native is None:
        raise ValueError(
            "maskgen._native is not built: pip install twofour, or build it with cmake;"
            " --set kernels=torch learns without it, many times slower"
        )
    native.isa()
    return native


def choose_kernels(
    kernels: Kernels,
    device: torch.device,
    dtype: torch.dtype,
    pattern: Pattern = TWO_FOUR,
    entropic: bool = False,
) -> ModuleType | None:
    """The native module, or None for the torch functions.

    Args:
        entropic: only the kernels of the entropic top n are needed.

    Raises:
        ValueError: `native` was asked for and cannot be had, or see `native_module`.
    """
    if kernels == "torch":
        return None
    fits = device.type == "cpu" and dtype in (torch.bfloat16, torch.float32)
    if fits and (pattern == TWO_FOUR or (entropic and pattern.m % 4 == 0)):
        return native_module()
    if kernels == "native":
        raise ValueError(
            "the native learning kernels cannot be used: they take 2:4 masks (with RoI's entropic"
            " top n any whose M is a multiple of 4) of bfloat16 or float32 weights on the CPU, not"
            f" {pattern} of {dtype} on {device}"
        )
    return None


def describe(native: ModuleType | None) -> str:
    """What `choose_kernels` chose, for people."""
    return "torch's functions" if native is None else f"native kernels for {native.isa()}"
