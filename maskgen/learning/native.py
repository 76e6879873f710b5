"""Which implementation computes masks: the fused native kernels, or torch.

The native kernels (`maskgen/csrc`) hold for contiguous bfloat16 or float32 weights on the CPU.
Everything else, and `kernels="torch"`, runs the torch functions, which draw the same noise.
"""

from __future__ import annotations

import importlib
import logging
from types import ModuleType
from typing import Literal

import torch

Kernels = Literal["auto", "native", "torch"]

_log = logging.getLogger(__name__)


def native_module() -> ModuleType | None:
    """The compiled kernels, or None where this installation was built without them."""
    try:
        return importlib.import_module("maskgen._native")
    except ModuleNotFoundError:
        return None


def choose_kernels(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """The native module, or None for the torch functions.

    Raises:
        ValueError: `native` was asked for and cannot be had.
    """
    suits = device.type == "cpu" and dtype in (torch.bfloat16, torch.float32)
    module = native_module() if kernels != "torch" and suits else None
    if kernels == "native" and module is None:
        reason = (
            "maskgen._native is not built: pip install twofour, or build it with cmake"
            if suits
            else f"they take bfloat16 or float32 weights on the CPU, not {dtype} on {device}"
        )
        raise ValueError(f"the native learning kernels cannot be used: {reason}")
    if kernels == "auto" and suits and module is None:
        _log.warning("maskgen._native is not built: learning runs in torch, many times slower")
    return module
