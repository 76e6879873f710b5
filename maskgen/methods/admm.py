"""ADMM pruning (Boža, "Fast and Effective Weight Update for Pruned Large Language Models",
arXiv 2401.02938), with the closing conjugate gradients of ALPS (arXiv 2406.07831).

Weights are scaled by the norms of their inputs, so that a weight's size is Wanda's score. The mask
is found on the way: in the first `MASK_ITERATIONS` more and more of what it does not keep is set to
zero, on a cubic schedule, judged by weights that already make up for what was dropped before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.placements import Codes, keep_from_codes, project
from maskgen.least_squares import damped, kept_weights_update
from maskgen.methods.base import PrunedLayer, PruneMethod
from maskgen.methods.sparsegpt import Hessian

ITERATIONS = 20
MASK_ITERATIONS = 15
DAMPING = 0.1
"""Share of the scaled moments' mean diagonal, as in the paper's code."""
PENALTY = 1.0
"""rho."""


def admm(weight: Tensor, moments: Tensor, pattern: Pattern = TWO_FOUR) -> tuple[Codes, Tensor]:
    """Choose a mask and the weights that suit it.

    Args:
        weight: (N, K) fp32, not modified.
        moments: (K, K), sum of x x^T.
        pattern: N:M; K is a multiple of M.

    Returns:
        (N, K/M) codes, and the updated (N, K) weight, zero where the codes drop.
    """
    norms = moments.diagonal().float().sqrt().clamp_min(1e-8)
    gram = damped(moments / (norms[:, None] * norms), DAMPING)
    identity = torch.eye(len(norms), dtype=gram.dtype, device=gram.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + PENALTY * identity))
    scaled = weight * norms
    wanted = scaled @ gram
    current, dual = scaled.clone(), torch.zeros_like(scaled)
    codes, keep = _project(scaled, pattern)
    for iteration in range(ITERATIONS):
        candidate = current + dual
        if iteration < MASK_ITERATIONS:
            codes, keep = _project(candidate, pattern)
            released = _release(candidate, keep, (iteration + 1) / MASK_ITERATIONS)
        else:
            released = keep
        split = candidate * released
        dual = candidate - split
        current = (wanted + PENALTY * (split - dual)) @ inverse
    update = kept_weights_update(weight, keep, damped(moments))
    return codes, weight * keep + update


def _project(scores: Tensor, pattern: Pattern) -> tuple[Codes, Tensor]:
    codes = project(scores.abs().cpu().numpy(), pattern)
    return codes, torch.from_numpy(keep_from_codes(codes, pattern)).to(scores.device)


def _release(candidate: Tensor, keep: Tensor, progress: float) -> Tensor:
    """`keep`, and of the other weights the largest share 1 - (1 - (1 - progress)^3)."""
    others = candidate.abs().masked_fill(keep, torch.inf).flatten()
    dropped = int((1 - (1 - progress) ** 3) * int((~keep).sum()))
    if not dropped:
        return torch.ones_like(keep)
    threshold = others.kthvalue(dropped).values
    return keep | (candidate.abs() > threshold)


class ADMM(PruneMethod[Hessian]):
    """ADMM's mask with the kept weights changed."""

    updates_weights = True

    def statistic(self, width: int, device: torch.device) -> Hessian:
        return Hessian(width, device)

    def prune_layer(self, weight: Tensor, statistic: Hessian) -> PrunedLayer:
        return PrunedLayer(*admm(weight, statistic.sum, self.pattern))
