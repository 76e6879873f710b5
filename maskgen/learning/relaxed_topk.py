"""RoI's relaxation in torch: Gumbel top-2 of the four weights of a group, one logit per weight.

arXiv 2608.23048, after Xie and Ermon, "Reparameterizable subset sampling via continuous
relaxations" (2019):

    a1 = phi / lambda + g;  mu_k = softmax(a_k / tau);  a_{k+1} = a_k + log(1 - mu_k)

The soft mask is mu_1 + mu_2. Reference for `maskgen/csrc/topk.h`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_TINY = 1e-30


class TopTwo(NamedTuple):
    """Both choices, each (rows, 4, groups), and 1 - mu_1 computed without cancellation."""

    first: Tensor
    first_rest: Tensor
    second: Tensor


def relax_top_two(weight_logits: Tensor, scale: float, tau: float, noise: Tensor) -> TopTwo:
    """Relaxed choice of two of four.

    Args:
        weight_logits: (rows, 4, groups).
        scale: lambda; the logits are divided by it.
        tau: temperature of both choices.
        noise: Gumbel, (rows, 4, groups), or 0 for none.
    """
    scores = weight_logits / scale + noise
    first = torch.softmax(scores / tau, dim=1)
    others = 1.0 - torch.eye(4, device=first.device, dtype=first.dtype)
    rest = torch.einsum("njg,ij->nig", first, others).clamp_min(_TINY)
    second = torch.softmax((scores + torch.log(rest)) / tau, dim=1)
    return TopTwo(first, rest, second)


def keep_from_top_two(choice: TopTwo) -> Tensor:
    """(rows, 4 * groups): expected keep of each weight; a group's sum is 2."""
    keep = (choice.first + choice.second).transpose(1, 2)
    return keep.reshape(keep.shape[0], -1)


def top_two_gradient(choice: TopTwo, keep_gradient: Tensor, scale: float, tau: float) -> Tensor:
    """(rows, 4, groups) gradient to the weight logits from dL / d(keep), (rows, 4 * groups)."""
    first, rest, second = choice
    rows, _, groups = first.shape
    gradient = keep_gradient.view(rows, groups, 4).transpose(1, 2)
    to_second = second / tau * (gradient - (second * gradient).sum(dim=1, keepdim=True))
    to_first = gradient - to_second / rest
    centred = to_first - (first * to_first).sum(dim=1, keepdim=True)
    return (to_second + first / tau * centred) / scale
