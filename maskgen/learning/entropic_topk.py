"""Gumbel top-n of the m weights of a group, relaxed by entropic optimal transport, in torch.

Where RoI draws its n choices one after the other (`relaxed_topk.py`), this takes them at once: the
weights of a group are transported to the two places "kept", with room for n, and "dropped", with
an entropy of weight tau (SOFT top-k, arXiv 2002.06504). For two places the plan is

    a = logits / lambda + gumbel
    keep_j = sigmoid((a_j - theta) / tau),  theta so that sum(keep) = n

No weight is kept more than once, which n choices allow, and the cost does not grow with n.
Reference for `maskgen/csrc/entropic.h`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_HALVINGS = 40
_TINY = 1e-30


def entropic_top_n(
    weight_logits: Tensor, n: int, scale: float, tau: float, noise: Tensor
) -> Tensor:
    """Expected keep of each weight, (rows, m, groups); a group's sum is n.

    Args:
        weight_logits: (rows, m, groups).
        n: how many are kept.
        scale: lambda; the logits are divided by it.
        tau: weight of the entropy.
        noise: Gumbel, (rows, m, groups), or 0 for none.
    """
    scores = (weight_logits / scale + noise) / tau
    m = scores.shape[1]
    # With theta there, no keep is below, or above, n / m.
    shift = math.log((m - n) / n)
    low = scores.amin(dim=1, keepdim=True) + shift
    high = scores.amax(dim=1, keepdim=True) + shift
    for _ in range(_HALVINGS):
        theta = (low + high) / 2
        many = torch.sigmoid(scores - theta).sum(dim=1, keepdim=True) > n
        low, high = torch.where(many, theta, low), torch.where(many, high, theta)
    return torch.sigmoid(scores - (low + high) / 2)


def entropic_gradient(keep: Tensor, keep_gradient: Tensor, scale: float, tau: float) -> Tensor:
    """(rows, m, groups) gradient to the weight logits from dL / d(keep), of the same shape.

    With s = keep (1 - keep) / tau it is s (g - <s, g> / sum(s)), since theta moves with the scores.
    """
    slope = keep * (1.0 - keep)
    mean = (slope * keep_gradient).sum(dim=1, keepdim=True)
    mean = mean / slope.sum(dim=1, keepdim=True).clamp_min(_TINY)
    return slope * (keep_gradient - mean) / (scale * tau)
