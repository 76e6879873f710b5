"""MaskPro's sampling in torch: two of four without replacement, and its exact log-prob gradient.

arXiv 2506.12876: p = softmax(logits) over a group; the first weight is drawn from p, the second
from what is left, so a set {i, j} has

    log p({i, j}) = log p_i + log p_j + log(1 / (1 - p_i) + 1 / (1 - p_j)).

Drawing the two largest of logits + Gumbel noise is the same distribution (Gumbel top-k). Reference
for `maskgen/csrc/sampling.h`.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-12


def top_two(scores: Tensor) -> Tensor:
    """(rows, 4, groups) -> bool of the same shape: the two largest; ties keep the lowest index."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, :2], True)


def sample_two(weight_logits: Tensor, noise: Tensor) -> Tensor:
    """(rows, 4, groups) bool, two of four in every group, from softmax(logits)."""
    return top_two(weight_logits + noise)


def pair_codes(kept: Tensor) -> Tensor:
    """(rows, 4, groups) bool, two of four -> (rows, groups) placement codes, uint8."""
    k0, k1, k2 = (kept[:, j] for j in range(3))
    with_first = torch.where(k1, 0, torch.where(k2, 1, 2))
    without_first = torch.where(k1, torch.where(k2, 3, 4), 5)
    return torch.where(k0, with_first, without_first).to(torch.uint8)


def keep_from_planes(planes: Tensor) -> Tensor:
    """(rows, 4, groups) -> (rows, 4 * groups)."""
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
