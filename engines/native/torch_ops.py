"""The kernels as a torch operator, for PyTorch models and vLLM's plugin. Imports torch.

    torch.ops.twofour.linear(x, packed, layout, n, bias, block=0, minima=False) -> (..., n)

is x W^T (+ bias), of x's dtype, with packed weights of any layout, summed in fp32 and rounded once;
layouts of int8 and int4 values round x to 8 bits (docs/formats.md). Importing this module
registers it, with a fake implementation, so that `torch.compile` can trace it. It is for inference:
no gradient is defined. Work runs on torch's own OpenMP pool, on as many threads as
`torch.get_num_threads()` says.

A decode step makes hundreds of calls, so the operator is registered through `torch.library.Library`
(about 9 us a call) and not `torch.library.custom_op` (about 17 us).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import torch

from engines.native import _native
from engines.native.layout import BF16, pack_dense, pack_sparse

_LIBRARY = torch.library.Library("twofour", "DEF")  # type: ignore[no-untyped-call]


def _linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    layout: int,
    n: int,
    bias: torch.Tensor | None,
    block: int = 0,
    minima: bool = False,
) -> torch.Tensor:
    out = _linear_fake(x, packed, layout, n, bias)
    k = x.shape[-1]
    rows = x.contiguous()
    if packed.dtype is not torch.uint8 or not packed.is_contiguous():
        raise ValueError(f"packed weights must be contiguous uint8, not {packed.dtype}")
    if bias is not None:
        if bias.numel() != n:
            raise ValueError(f"the bias must have {n} values, not {bias.numel()}")
        bias = bias.float().contiguous()
    _native.linear_at(
        layout,
        n,
        k,
        packed.data_ptr(),
        packed.numel(),
        block,
        minima,
        rows.data_ptr(),
        out.data_ptr(),
        x.dtype is torch.bfloat16,
        x.numel() // max(k, 1),
        0 if bias is None else bias.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def _linear_fake(
    x: torch.Tensor,
    packed: torch.Tensor,
    layout: int,
    n: int,
    bias: torch.Tensor | None,
    block: int = 0,
    minima: bool = False,
) -> torch.Tensor:
    if x.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"x must be bfloat16 or float32, not {x.dtype}")
    return x.new_empty((*x.shape[:-1], n))


_LIBRARY.define(  # type: ignore[no-untyped-call]
    "linear(Tensor x, Tensor packed, int layout, int n, Tensor? bias, int block=0,"
    " bool minima=False) -> Tensor"
)
_LIBRARY.impl("linear", _linear, "CPU")  # type: ignore[no-untyped-call]
_LIBRARY.impl("linear", _linear_fake, "Meta")  # type: ignore[no-untyped-call]

linear: Callable[..., torch.Tensor] = torch.ops.twofour.linear.default
"""x (..., k) bf16 or float32; packed uint8, `engines.native.layout.packed_bytes` of them; layout an
`engines.native.layout.Layout`; n outputs; bias (n,) of any floating dtype, or None; block and
minima as in `engines.native.layout.PackedWeights`.

Raises ValueError where shapes or dtypes do not fit. What the bytes say is not looked at here:
`engines.native.layout.validate` and `engines.native.lowbit.validate` do that once.
"""


def pack_tensor(weights: torch.Tensor, codes: torch.Tensor | None) -> torch.Tensor:
    """Packed bytes of a layer: sparse by its placement codes, dense without.

    Args:
        weights: (n, k), bfloat16.
        codes: (n, k/4) uint8, or None.

    Raises:
        engines.native.layout.LayoutError: shapes, dtypes or codes are wrong.
    """
    dense = _array(weights.detach().contiguous())
    packed = pack_dense(dense) if codes is None else pack_sparse(dense, codes.numpy())
    return torch.from_numpy(packed.data)


def _array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """A view of a CPU tensor; numpy knows bf16 only through ml_dtypes."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(BF16)
    return tensor.numpy()
