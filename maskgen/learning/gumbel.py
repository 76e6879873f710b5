"""MaskLLM's relaxation in torch: a Gumbel-softmax over the placements of each group.

Equations of arXiv 2409.17481 (section 3.2): y_i is proportional to exp((kappa * pi_i + g_i) / tau),
the soft mask is sum_i y_i * placement_i, and the layer computes with weight * soft mask. This is
the reference for `maskgen/csrc/gumbel.h` and what runs on devices that have no native kernel.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.placements import all_placements


def placements_like(tensor: Tensor, pattern: Pattern = TWO_FOUR) -> Tensor:
    """(placements, M) with the tensor's device and type."""
    return torch.from_numpy(all_placements(pattern).astype(np.float32)).to(tensor)


def placement_probabilities(
    placement_logits: Tensor, kappa: float, tau: float, noise: Tensor
) -> Tensor:
    """(rows, placements, groups) relaxed one-hot choice; `noise` is Gumbel, or 0 for none."""
    return torch.softmax((kappa * placement_logits + noise) / tau, dim=1)


def keep_from_placements(probabilities: Tensor, pattern: Pattern = TWO_FOUR) -> Tensor:
    """(rows, placements, groups) -> (rows, M * groups): expected keep; a group's sum is N."""
    keep = torch.einsum("nig,ij->ngj", probabilities, placements_like(probabilities, pattern))
    return keep.reshape(keep.shape[0], -1)


def placement_gradient(
    probabilities: Tensor, keep_gradient: Tensor, slope: float, pattern: Pattern = TWO_FOUR
) -> Tensor:
    """Gradient to the placement logits through the softmax.

    Args:
        probabilities: (rows, placements, groups) from `placement_probabilities`.
        keep_gradient: (rows, M * groups), dL / d(keep).
        slope: kappa / tau.
    """
    rows, _, groups = probabilities.shape
    by_group = keep_gradient.view(rows, groups, pattern.m)
    gradient = torch.einsum("ngj,ij->nig", by_group, placements_like(probabilities, pattern))
    mean = (probabilities * gradient).sum(dim=1, keepdim=True)
    return slope * probabilities * (gradient - mean)
