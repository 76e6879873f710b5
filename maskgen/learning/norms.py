"""RMSNorm for learning on the CPU, in one native pass each way.

transformers' norms are several functions of torch, which keep their input in fp32 for the backward
pass; this one keeps the input as it is and a number a row.
"""

from __future__ import annotations

from collections.abc import Callable
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
    norms: list[Any] = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm")]
    changed = 0
    for norm in norms:
        epsilon = _plain_epsilon(norm)
        if epsilon is not None:
            norm.forward = partial(_forward, norm.forward, norm.weight, epsilon)
            changed += 1
    return f"{changed} of {len(norms)} norms by native kernels"


@torch.no_grad()
def _plain_epsilon(norm: Any) -> float | None:
    """That of a frozen norm that is weight * x / rms(x); None for others.

    Some add 1 to the weight, some round elsewhere, some name their epsilon otherwise.
    """
    weight = getattr(norm, "weight", None)
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if weight is None or weight.requires_grad or weight.device.type != "cpu" or weight.ndim != 1:
        return None
    if weight.dtype not in (torch.bfloat16, torch.float32) or len(weight) % _LANES:
        return None
    if not isinstance(epsilon, float) or epsilon <= 0:
        return None
    x = torch.randn(8, len(weight), generator=torch.Generator().manual_seed(0))
    x[4:] *= epsilon**0.5  # where epsilon counts
    x = x.to(weight.dtype)
    ours, theirs = _forward(norm.forward, weight, epsilon, x), norm(x)
    tolerance = 2**-7 if weight.dtype == torch.bfloat16 else 1e-4
    same = ours.dtype == theirs.dtype and torch.allclose(ours, theirs, rtol=tolerance, atol=1e-6)
    return epsilon if same else None


def _forward(
    plain: Callable[[Tensor], Tensor], weight: Tensor, epsilon: float, hidden_states: Tensor
) -> Tensor:
    """(..., size) like transformers' LlamaRMSNorm.forward, `plain` if types are mixed."""
    if hidden_states.dtype != weight.dtype:
        return plain(hidden_states)
    apply: Any = _RMSNorm.apply
    normal: Tensor = apply(hidden_states, weight, epsilon)
    return normal


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        scales = torch.empty(x.numel() // len(weight))
        native_module().rms_norm(_rows(x), weight, epsilon, _rows(out), scales)
        ctx.save_for_backward(x, weight, scales)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        x, weight, scales = ctx.saved_tensors
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        native_module().rms_norm_gradient(_rows(x), weight, scales, _rows(gradients[0]), _rows(out))
        return out, None, None


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]).contiguous()
