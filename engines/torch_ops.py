"""The kernels as a torch operator, for PyTorch models and vLLM's plugin. Imports torch.

    torch.ops.twofour.linear(x, packed, layout, n, bias) -> (..., n), of x's dtype

It is registered by importing this module, has a fake implementation (so that `torch.compile` can
trace it), and is for inference: no gradient is defined. Work runs on torch's own OpenMP pool, on as
many threads as `torch.get_num_threads()` says.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch

from engines import kernels
from engines.layout import BF16, Layout, PackedWeights, pack_dense, pack_sparse


@torch.library.custom_op("twofour::linear", mutates_args=(), device_types="cpu")
def linear(
    x: torch.Tensor, packed: torch.Tensor, layout: int, n: int, bias: torch.Tensor | None
) -> torch.Tensor:
    """x W^T (+ bias) with packed weights, summed in fp32 and rounded once.

    Args:
        x: (..., k), bfloat16 or float32.
        packed: uint8, `engines.layout.packed_bytes(layout, n, k)` of them.
        layout: an `engines.layout.Layout`.
        n: outputs.
        bias: (n,), any floating dtype, or None.

    Returns:
        (..., n), of x's dtype.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    if x.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"x must be bfloat16 or float32, not {x.dtype}")
    k = x.shape[-1]
    weights = PackedWeights(Layout(layout), n, k, packed.detach().numpy())
    out = torch.empty((*x.shape[:-1], n), dtype=x.dtype)
    kernels.linear(
        weights,
        _array(x.detach().reshape(-1, k).contiguous()),
        bias=None if bias is None else bias.detach().float().contiguous().numpy(),
        out=_array(out.view(-1, n)),
        threads=torch.get_num_threads(),
    )
    return out


@linear.register_fake
def _(
    x: torch.Tensor, packed: torch.Tensor, layout: int, n: int, bias: torch.Tensor | None
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], n))


def pack_tensor(weights: torch.Tensor, codes: torch.Tensor | None) -> torch.Tensor:
    """Packed bytes of a layer: sparse by its pattern codes, dense without.

    Args:
        weights: (n, k), bfloat16.
        codes: (n, k/4) uint8, or None.

    Raises:
        engines.layout.LayoutError: shapes, dtypes or codes are wrong.
    """
    dense = _array(weights.detach().contiguous())
    packed = pack_dense(dense) if codes is None else pack_sparse(dense, codes.numpy())
    return torch.from_numpy(packed.data)


def _array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """A view of a CPU tensor; numpy knows bf16 only through ml_dtypes."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(BF16)
    return tensor.numpy()
