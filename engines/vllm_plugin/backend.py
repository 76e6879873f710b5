"""What the linear method needs of a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from engines.native.layout import Layout


@dataclass(frozen=True)
class PackedRows:
    """Rows that are multiplied by one call.

    Attributes:
        n: outputs on this worker.
        k: inputs on this worker.
        sparse: whether a mask's kernel multiplies them.
        tensors: the weights as the device's kernels want them.
        layout: of the packed weights (`engines.native.layout.Layout`), on a device that has them.
        block: inputs that share a scale; 0 for bf16.
        minima: whether blocks have minima of their own.
        handle: for the backend's own use.
    """

    n: int
    k: int
    sparse: bool
    tensors: dict[str, torch.Tensor]
    layout: int = 0
    block: int = 0
    minima: bool = False
    handle: int = -1


@dataclass(frozen=True)
class DeviceKernels:
    """What `EngineInfo` says about a device: instruction set, layout, and the sparse kernel."""

    isa: str
    layout: str
    sparse: str


class Backend(Protocol):
    """Packs weights for a device and multiplies with them. Holds no state of its own."""

    def pack_sparse(self, kept: torch.Tensor, codes: torch.Tensor) -> PackedRows:
        """(n, k/2) bf16 and (n, k/8) uint8 -> a run.

        Raises:
            EngineDirectoryError: a code is no placement.
        """

    def pack_dense(self, weight: torch.Tensor) -> PackedRows:
        """(n, k) bf16 -> a run."""

    def adopt(self, run: PackedRows) -> PackedRows:
        """Take a run into service: `multiply` will be called with what this returns."""

    def multiply(self, x: torch.Tensor, run: PackedRows, bias: torch.Tensor | None) -> torch.Tensor:
        """(..., k) bf16, bias (n,) float32 -> (..., n) bf16; traceable by torch.compile."""

    def describe(self, name: str, run: PackedRows) -> str:
        """One line for the log: shape, and which kernel serves how many tokens."""

    def kernels(self, kind: Layout) -> DeviceKernels:
        """What runs sparse layers of such values and patterns on this device."""


def copy_into(to: Any, tensor: Any) -> None:
    """Copy a packed tensor over another in place; of a tensor that wraps others, each of those."""
    if type(tensor) is torch.Tensor:
        to.copy_(tensor)
        return
    for inner in tensor.__tensor_flatten__()[0]:
        copy_into(getattr(to, inner), getattr(tensor, inner))
