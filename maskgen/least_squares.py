"""Least squares over the weights that a mask keeps: what they become to make up for the others."""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS = 20
DAMPING = 0.01
"""Share of the second moments' mean diagonal that is added to their diagonal, as in SparseGPT."""


def damped(moments: Tensor, damping: float = DAMPING) -> Tensor:
    """(K, K) fp32 second moments with a share of their mean diagonal added to it.

    Args:
        moments: (K, K), sum of x x^T.
        damping: that share; inputs that are always zero get it as well.
    """
    matrix = moments.float().clone()
    matrix.diagonal().add_(max(damping * float(matrix.diagonal().mean()), 1e-12))
    return matrix


def kept_weights_update(
    weight: Tensor, keep: Tensor, hessian: Tensor, iterations: int = ITERATIONS
) -> Tensor:
    """What to add to the kept weights to get the layer's old outputs back: min ||X (V - W)^T||.

    Conjugate gradients on every row at once, with the diagonal as preconditioner: rows have
    different supports, so that a direct solution would factor a matrix a row. The last step of
    ALPS is the same (arXiv 2406.07831, section 3.3).

    Args:
        weight: (N, K) fp32, W, unmasked.
        keep: (N, K) bool, the support of V.
        hessian: (K, K) fp32, X^T X, damped.

    Returns:
        (N, K) fp32, V - keep * W; zero where `keep` is False.
    """
    support = keep.to(weight.dtype)
    inverse = hessian.diagonal().reciprocal()
    update = torch.zeros_like(weight)
    residual = ((weight - weight * support) @ hessian).mul_(support)
    direction = residual * inverse
    length = (residual * direction).sum(dim=1, keepdim=True)
    smallest = torch.finfo(weight.dtype).tiny
    for _ in range(iterations):
        image = (direction @ hessian).mul_(support)
        rate = length / (direction * image).sum(dim=1, keepdim=True).clamp_min(smallest)
        update.addcmul_(rate, direction)
        residual.addcmul_(rate, image, value=-1)
        scaled = residual * inverse
        new = (residual * scaled).sum(dim=1, keepdim=True)
        direction.mul_(new / length.clamp_min(smallest)).add_(scaled)
        length = new
    return update
