"""Next-token loss of a model, its gradient computed in the same pass.

The vocabulary's logits are the largest activations of a small model: (2048, 49152) in fp32 is
400 MB, and the usual cross entropy walks over them six times. Here a position at a time is turned
into loss and gradient while it is in cache, and only the gradient, in the logits' own type, is
kept. On the CPU a native kernel does that (`maskgen/csrc/loss.h`), elsewhere torch.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from maskgen.learning.native import built_module

_ROWS = 32
"""Positions that torch's functions take at once."""


class _NextTokenLoss(torch.autograd.Function):
    """Mean cross entropy against the next tokens mixed with a teacher's distribution."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, teacher: Tensor | None, share: float
    ) -> tuple[Tensor, Tensor]:
        count = int((targets >= 0).sum())
        wanted = ctx.needs_input_grad[0]
        layout = torch.contiguous_format
        gradient = torch.empty_like(logits, memory_format=layout) if wanted else None
        fits = logits.device.type == "cpu" and logits.dtype in (torch.bfloat16, torch.float32)
        native = built_module() if fits else None
        losses = _torch_losses if native is None else partial(_native_losses, native)
        hard, divergence = losses(logits, targets, teacher, share, 1.0 / count, gradient)
        ctx.save_for_backward(gradient)
        loss = ((1.0 - share) * hard + share * divergence) / count
        return torch.tensor(loss), torch.tensor(hard / count)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        scale = float(gradients[0])
        return gradient if scale == 1.0 else gradient * scale, None, None, None


def _native_losses(
    native: ModuleType,
    logits: Tensor,
    targets: Tensor,
    teacher: Tensor | None,
    share: float,
    scale: float,
    gradient: Tensor | None,
) -> tuple[float, float]:
    """Sums of loss and divergence over all positions; writes `scale` times the mix's gradient."""
    logits = logits.detach().contiguous()
    taught = None if teacher is None else teacher.to(logits.dtype).contiguous()
    losses: tuple[float, float] = native.next_token_loss(
        logits, targets, taught, share, scale, gradient
    )
    return losses


def _torch_losses(
    logits: Tensor,
    targets: Tensor,
    teacher: Tensor | None,
    share: float,
    scale: float,
    gradient: Tensor | None,
) -> tuple[float, float]:
    """The same by torch's functions."""
    hard = torch.zeros((), dtype=torch.float64)
    divergence = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(targets), _ROWS):
        rows = slice(start, start + _ROWS)
        counted = (targets[rows, None] >= 0).float()
        target = targets[rows, None].clamp_min(0)
        log_p = torch.log_softmax(logits[rows].float(), dim=-1)
        hard -= (log_p.gather(1, target) * counted).sum().double().cpu()
        slope = log_p.exp()
        if teacher is not None:
            log_q = torch.log_softmax(teacher[rows].float(), dim=-1)
            q = log_q.exp()
            divergence += (q * (log_q - log_p) * counted).sum().double().cpu()
            slope -= share * q
        if gradient is not None:
            slope.scatter_add_(1, target, torch.full_like(slope[:, :1], share - 1.0))
            gradient[rows] = slope.mul_(counted * scale).to(gradient.dtype)
    return float(hard), float(divergence)


def next_token_loss(
    logits: Tensor, ids: Tensor, teacher: Tensor | None = None, share: float = 0.0
) -> tuple[Tensor, float]:
    """What to minimise, and the language-model loss in nats a token (for reports).

    Args:
        logits: (batch, length, vocabulary).
        ids: (batch, length); position t predicts ids[:, t + 1].
        teacher: the unmasked model's logits, if `share` is above 0.
        share: weight of KL(teacher || model); the rest is cross entropy against the text.

    Raises:
        ValueError: sequences of a single token.
    """
    if ids.shape[1] < 2:
        raise ValueError(f"sequences of {ids.shape[1]} tokens predict nothing; give at least 2")
    # The last position predicts nothing; marking it is cheaper than slicing it off.
    targets = torch.full_like(ids, -1, dtype=torch.int64)
    targets[:, :-1] = ids[:, 1:]
    taught = None if teacher is None else teacher.flatten(0, 1)
    predicted, targets = logits.flatten(0, 1), targets.flatten()
    apply: Any = _NextTokenLoss.apply
    loss, hard = apply(predicted, targets, taught, share)
    return loss, float(hard.detach())
