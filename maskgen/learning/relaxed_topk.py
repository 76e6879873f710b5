"""RoI's relaxation in torch: Gumbel top-n of the m weights of a group, one logit per weight.

arXiv 2608.23048, after Xie and Ermon, "Reparameterizable subset sampling via continuous
relaxations" (2019):

    a1 = phi / lambda + g;  mu_k = softmax(a_k / tau);  a_{k+1} = a_k + log(1 - mu_k)

The soft mask is mu_1 + ... + mu_n. Reference for `maskgen/csrc/topk.h`, which has n = 2 and m = 4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_TINY = 1e-30


class Choice(NamedTuple):
    """One of the n choices, (rows, m, groups), and 1 - mu computed without cancellation."""

    share: Tensor
    rest: Tensor


def relax_top_n(
    weight_logits: Tensor, n: int, scale: float, tau: float, noise: Tensor
) -> list[Choice]:
    """Relaxed choices of n of m.

    Args:
        weight_logits: (rows, m, groups).
        n: how many are chosen.
        scale: lambda; the logits are divided by it.
        tau: temperature of all choices.
        noise: Gumbel, (rows, m, groups), or 0 for none.
    """
    scores = weight_logits / scale + noise
    m = weight_logits.shape[1]
    others = 1.0 - torch.eye(m, device=scores.device, dtype=scores.dtype)
    choices: list[Choice] = []
    for _ in range(n):
        share = torch.softmax(scores / tau, dim=1)
        rest = torch.einsum("njg,ij->nig", share, others).clamp_min(_TINY)
        choices.append(Choice(share, rest))
        scores = scores + torch.log(rest)
    return choices


def keep_from_choices(choices: list[Choice]) -> Tensor:
    """(rows, m * groups): expected keep of each weight; a group's sum is n."""
    keep = choices[0].share
    for choice in choices[1:]:
        keep = keep + choice.share
    return keep.transpose(1, 2).reshape(keep.shape[0], -1)


def top_n_gradient(
    choices: list[Choice], keep_gradient: Tensor, scale: float, tau: float
) -> Tensor:
    """(rows, m, groups) gradient to the weight logits from dL / d(keep), (rows, m * groups)."""
    rows, m, groups = choices[0].share.shape
    gradient = keep_gradient.view(rows, groups, m).transpose(1, 2)
    to_scores = torch.zeros_like(choices[0].share)  # of the choices after this one
    for share, rest in reversed(choices):
        to_share = gradient - to_scores / rest
        centred = to_share - (share * to_share).sum(dim=1, keepdim=True)
        to_scores = to_scores + share / tau * centred
    return to_scores / scale
