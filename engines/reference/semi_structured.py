"""2:4 weights as PyTorch's semi-structured tensors: the CUDA path that needs no TensorRT.

Packing and unpacking are ordinary tensor code and run anywhere; only the product needs a GPU with
sparse tensor cores (compute capability 8.0 or higher). All masks of an engine are kept packed in
host memory, and switching is copying one of them over the tensors that the model holds, so
addresses, and whatever was compiled or captured with them, stay as they are.

The layout is CUTLASS's, as `torch.sparse._semi_structured_conversions` defines it: half of the
values, and two bits for each of them, 9/16 of the dense bytes in bf16. cuSPARSELt's differs between
GPUs and cannot be made on a CPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.sparse import SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)

from engines.errors import EngineDirectoryError, MaskError, UnknownMaskError
from maskgen.format.mask import Mask
from maskgen.format.pattern import TWO_FOUR

SEMI_STRUCTURED_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """One (N, K) weight that is 2:4.

    Attributes:
        values: (N, K/2) kept values.
        meta: (N, K/16) int16, their positions in CUTLASS's order.
    """

    values: torch.Tensor
    meta: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        """(N, K)."""
        return torch.Size((self.values.shape[0], self.values.shape[1] * 2))

    @property
    def nbytes(self) -> int:
        """Bytes of values and positions."""
        return self.values.nbytes + self.meta.nbytes


def has_sparse_kernels(device: torch.device) -> bool:
    """Whether PyTorch multiplies 2:4 weights on this device."""
    return device.type == "cuda"


def checked_device(name: str) -> torch.device:
    """The CPU, or a GPU with sparse tensor cores.

    Raises:
        EngineDirectoryError: there is no such device, or it is neither.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise EngineDirectoryError(f"device {name!r} is unknown; use cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise EngineDirectoryError(f"device {name!r} has no 2:4 kernels; use cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise EngineDirectoryError(f"device {name!r}: PyTorch finds no GPU")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise EngineDirectoryError(
            f"device {name!r}: {torch.cuda.get_device_name(device)} has no sparse tensor cores;"
            " they need compute capability 8.0 or higher"
        )
    return device


def unfit(shape: tuple[int, ...], dtype: torch.dtype) -> str | None:
    """Why a weight of this shape and type has no sparse kernel; None when it has one."""
    if dtype not in SEMI_STRUCTURED_DTYPES:
        return f"{dtype} has no sparse kernel; use bfloat16 or float16"
    limits = SparseSemiStructuredTensorCUTLASS._DTYPE_SHAPE_CONSTRAINTS[dtype]
    rows, columns = limits.sparse_min_rows, limits.sparse_min_cols
    if len(shape) != 2 or shape[0] % rows or shape[1] % columns:
        return f"shape {tuple(shape)} is no multiple of ({rows}, {columns})"
    return None


def pack(weight: torch.Tensor) -> PackedWeight:
    """Pack a 2:4 weight.

    Args:
        weight: (N, K) bf16 or f16 on any device.

    Raises:
        ValueError: the shape or type has no sparse kernel, or a group of four holds more than two
            non-zero weights. (PyTorch's own conversion drops the others without a word.)
    """
    reason = unfit(weight.shape, weight.dtype)
    if reason is not None:
        raise ValueError(reason)
    dense = (weight.reshape(weight.shape[0], -1, 4) != 0).sum(-1) > 2
    if bool(dense.any()):
        row, group = (int(i) for i in dense.nonzero()[0])
        raise ValueError(
            f"{int(dense.sum())} of {dense.numel()} groups hold more than two non-zero weights (the"
            f" first in row {row}, inputs {4 * group} to {4 * group + 3}); apply the mask first"
        )
    convert: Any = sparse_semi_structured_from_dense_cutlass
    values, meta = convert(weight.contiguous())
    return PackedWeight(values, meta)


def unpack_semi_structured(packed: PackedWeight) -> torch.Tensor:
    """The (N, K) weight again, bit for bit apart from the sign of zeros."""
    convert: Any = sparse_semi_structured_to_dense_cutlass
    dense: torch.Tensor = convert(packed.values, packed.meta)
    return dense


def sparse_tensor(packed: PackedWeight, device: torch.device | str) -> torch.Tensor:
    """The weight as PyTorch multiplies it: a tensor that `linear` gives to the sparse kernel."""
    with warnings.catch_warnings():
        # PyTorch calls the class a prototype; its layout is what the tests pin down.
        warnings.filterwarnings("ignore", ".*SparseSemiStructuredTensor is in prototype stage")
        return SparseSemiStructuredTensorCUTLASS(
            packed.shape,
            packed=packed.values.to(device, copy=True),
            meta=packed.meta.to(device, copy=True),
            packed_t=None,
            meta_t=None,
            compressed_swizzled_bitmask=None,
            requires_grad=False,
        )


def swap_(weight: torch.Tensor, packed: PackedWeight) -> None:
    """Overwrite what `sparse_tensor` made with another mask's weight, in place.

    Raises:
        ValueError: the shapes differ.
    """
    if weight.shape != packed.shape:
        raise ValueError(f"a weight of {tuple(packed.shape)} cannot replace {tuple(weight.shape)}")
    weight.packed.copy_(packed.values, non_blocking=True)  # type: ignore[attr-defined]
    weight.meta.copy_(packed.meta, non_blocking=True)  # type: ignore[attr-defined]


class PackedMasks:
    """The sparse linear layers of one model, under one of several masks at a time.

    Layers whose shape has no sparse kernel stay dense and are swapped as dense weights.

    Args:
        linears: layer name -> module with its dense weight, on the device where it runs. The
            modules' weights are replaced; their dense values are kept in host memory.
    """

    def __init__(self, linears: Mapping[str, torch.nn.Linear]) -> None:
        self._linears = dict(linears)
        self._dense = {
            name: linear.weight.detach().to("cpu", copy=True) for name, linear in linears.items()
        }
        self._packed: dict[str, dict[str, PackedWeight | torch.Tensor]] = {}
        self.active: str | None = None

    @property
    def sparse_layers(self) -> tuple[str, ...]:
        """Layers that run a sparse kernel."""
        return tuple(n for n, w in self._dense.items() if unfit(w.shape, w.dtype) is None)

    def kernels(self) -> dict[str, str]:
        """Layer shape (`n x k`) -> the kernel that serves it, and why where it is dense."""
        found: dict[str, str] = {}
        for weight in self._dense.values():
            reason = unfit(weight.shape, weight.dtype)
            kernel = "CUTLASS 2:4" if reason is None else f"dense: {reason}"
            found[f"{weight.shape[0]} x {weight.shape[1]}"] = kernel
        return found

    def nbytes(self, name: str) -> int:
        """Bytes of one mask's weights."""
        return sum(weight.nbytes for weight in self._packed[name].values())

    def add(self, name: str, mask: Mask) -> None:
        """Pack all layers under `mask`, on the CPU.

        Raises:
            MaskError: the name is taken, or the mask is not 2:4, or lists other layers or shapes.
        """
        if mask.pattern != TWO_FOUR:
            raise MaskError(
                f"mask {name!r} is {mask.pattern}; PyTorch's sparse kernels run {TWO_FOUR} alone:"
                " open this directory without them"
            )
        if name in self._packed:
            raise MaskError(f"a mask named {name!r} is loaded already")
        shapes = {layer: tuple(weight.shape) for layer, weight in self._dense.items()}
        if mask.shapes != shapes:
            raise MaskError(f"mask {name!r} lists other layers or shapes than the model's")
        self._packed[name] = {
            layer: _masked(weight, mask, layer) for layer, weight in self._dense.items()
        }

    def remove(self, name: str) -> None:
        """Forget a mask; the model keeps its weights until another one is activated.

        Raises:
            UnknownMaskError: there is no such mask.
        """
        if self._packed.pop(name, None) is None:
            raise UnknownMaskError(f"no mask named {name!r} is loaded")
        if self.active == name:
            self.active = None

    def activate(self, name: str) -> None:
        """Give the model the weights of a mask.

        Raises:
            UnknownMaskError: there is no such mask.
        """
        if name not in self._packed:
            raise UnknownMaskError(f"no mask named {name!r} is loaded")
        if name == self.active:
            return
        for layer, weight in self._packed[name].items():
            _install(self._linears[layer], weight)
        self.active = name


def _masked(weight: torch.Tensor, mask: Mask, layer: str) -> PackedWeight | torch.Tensor:
    keep = torch.from_numpy(mask.keep(layer))
    masked = torch.where(keep, weight, torch.zeros((), dtype=weight.dtype))
    return masked if unfit(weight.shape, weight.dtype) is not None else pack(masked)


def _install(linear: torch.nn.Linear, weight: PackedWeight | torch.Tensor) -> None:
    if isinstance(weight, torch.Tensor):
        linear.weight.data.copy_(weight)
    elif isinstance(linear.weight, SparseSemiStructuredTensorCUTLASS):
        swap_(linear.weight, weight)
    else:
        tensor = sparse_tensor(weight, linear.weight.device)
        linear.weight = torch.nn.Parameter(tensor, requires_grad=False)
