"""MaskPro's sampling in torch: n of m without replacement, and its log-probability's gradient.

arXiv 2506.12876: p = softmax(logits) over a group; the first weight is drawn from p, the second
from what is left, so a set {i, j} has

    log p({i, j}) = log p_i + log p_j + log(1 / (1 - p_i) + 1 / (1 - p_j)).

Drawing the two largest of logits + Gumbel noise is the same distribution (Gumbel top-k). Reference
for `maskgen/csrc/sampling.h`.

For other n a set's probability is a sum over the n! orders in which it can be drawn. There the
gradient is that of the order in which it *was* drawn, which the noise tells (Plackett and Luce):

    log p(i_1, ..., i_n) = sum over k of logit(i_k) - log(sum of exp(logits) but i_1 ... i_{k-1})

Its mean is the same, since the sum over orders of p * d log p is the derivative of their sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-12


def top_n(scores: Tensor, n: int) -> Tensor:
    """(rows, m, groups) -> bool of the same shape: the n largest; ties keep the lowest index."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, :n], True)


def order_gradient(weight_logits: Tensor, noise: Tensor, n: int) -> Tensor:
    """(rows, m, groups): d log p(the order that the noise draws) / d logits."""
    order = (weight_logits + noise).argsort(dim=1, descending=True, stable=True)
    logits = weight_logits.gather(1, order)
    # Of what is left at each draw: the largest is taken out, so that nothing overflows.
    weights = torch.exp(logits - logits.amax(dim=1, keepdim=True))
    left = weights.flip(1).cumsum(dim=1).flip(1).clamp_min(_TINY)
    drawn = torch.arange(left.shape[1], device=left.device).view(1, -1, 1) < n
    shares = torch.where(drawn, 1.0 / left, 0.0).cumsum(dim=1)
    gradient = drawn.to(logits.dtype) - weights * shares
    return torch.empty_like(gradient).scatter_(1, order, gradient)


def pair_codes(kept: Tensor) -> Tensor:
    """(rows, 4, groups) bool, two of four -> (rows, groups) placement codes, uint8."""
    k0, k1, k2 = (kept[:, j] for j in range(3))
    with_first = torch.where(k1, 0, torch.where(k2, 1, 2))
    without_first = torch.where(k1, torch.where(k2, 3, 4), 5)
    return torch.where(k0, with_first, without_first).to(torch.uint8)


def keep_from_planes(planes: Tensor) -> Tensor:
    """(rows, m, groups) -> (rows, m * groups)."""
    return planes.transpose(1, 2).reshape(planes.shape[0], -1)


def _probabilities(weight_logits: Tensor) -> tuple[Tensor, Tensor]:
    p = torch.softmax(weight_logits, dim=1)
    others = 1.0 - torch.eye(4, device=p.device, dtype=p.dtype)
    return p, torch.einsum("njg,ij->nig", p, others).clamp_min(_TINY)


def log_probability(weight_logits: Tensor, kept: Tensor) -> Tensor:
    """(rows, groups): log-probability of drawing exactly the kept pair."""
    p, rest = _probabilities(weight_logits)
    pair = torch.where(kept, p.log(), 0.0).sum(dim=1)
    return pair + torch.where(kept, 1.0 / rest, 0.0).sum(dim=1).log()


def log_probability_gradient(weight_logits: Tensor, kept: Tensor) -> Tensor:
    """(rows, 4, groups): d log p(kept) / d logits.

    With respect to p the gradient is 1 / p_i + R / (1 - p_i)^2 for kept weights and 0 for the
    others, R = 1 / sum over kept of 1 / (1 - p_k); the softmax turns it into p * (g - <g, p>).
    """
    p, rest = _probabilities(weight_logits)
    kept_sum = torch.where(kept, 1.0 / rest, 0.0).sum(dim=1, keepdim=True)
    weighted = torch.where(kept, 1.0 + p / rest / (rest * kept_sum), 0.0)  # p * g
    return weighted - p * weighted.sum(dim=1, keepdim=True)
