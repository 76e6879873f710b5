"""RMSNorm for learning on the CPU, in one native pass each way.

transformers' norms are six of torch's functions, which keep three fp32 copies of their input for
the backward pass; this one keeps the input and a number a row.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from maskgen.learning.native import native_module

_LANES = 16
"""What a row's size has to divide by."""


def use_native_norms(model: nn.Module) -> str:
    """Give the frozen norms of a model on this CPU native kernels, where those compute the same.

    Returns:
        How many norms have them now, for people.
    """
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    same = [norm for norm in norms if _is_plain(norm)]
    for norm in same:
        weight: Any = norm.weight
        norm.forward = partial(_normal, weight, _epsilon(norm))
    return f"{len(same)} of {len(norms)} norms by native kernels"


def _epsilon(norm: Any) -> float:
    return float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0)))


@torch.no_grad()
def _is_plain(norm: Any) -> bool:
    """Whether a norm is weight * x / rms(x): some add 1 to the weight, some round elsewhere."""
    weight = getattr(norm, "weight", None)
    if weight is None or weight.requires_grad or weight.device.type != "cpu" or weight.ndim != 1:
        return False
    if weight.dtype not in (torch.bfloat16, torch.float32) or len(weight) % _LANES:
        return False
    x = torch.randn(8, len(weight), generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    ours, theirs = _normal(weight, _epsilon(norm), x), norm(x)
    return ours.dtype == theirs.dtype and torch.allclose(ours, theirs, rtol=2**-7, atol=1e-6)


def _normal(weight: Tensor, epsilon: float, hidden_states: Tensor) -> Tensor:
    """(..., size) like transformers' LlamaRMSNorm.forward."""
    apply: Any = _RMSNorm.apply
    normal: Tensor = apply(hidden_states, weight, epsilon)
    return normal


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(weight.dtype).contiguous()
        out, scales = torch.empty_like(rows), torch.empty(len(rows))
        native_module().rms_norm(rows, weight, epsilon, out, scales)
        ctx.save_for_backward(rows, weight, scales)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        rows, weight, scales = ctx.saved_tensors
        gradient, out = gradients[0].reshape(rows.shape).contiguous(), torch.empty_like(rows)
        native_module().rms_norm_gradient(rows, weight, scales, gradient, out)
        return out.view(gradients[0].shape), None, None
