"""MaskLLM's relaxation in torch: a Gumbel-softmax over the six placements of each group.

Equations of arXiv 2409.17481 (section 3.2): y_i is proportional to exp((kappa * pi_i + g_i) / tau),
the soft mask is sum_i y_i * placement_i, and the layer computes with weight * soft mask. This is
the reference for `maskgen/csrc/gumbel.h` and what runs on devices that have no native kernel.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from maskgen.format.two_four import PLACEMENTS


def placements_like(tensor: Tensor) -> Tensor:
    """(6, 4) placements with the tensor's device and type."""
    return torch.from_numpy(PLACEMENTS.astype(np.float32)).to(tensor)


def placement_probabilities(
    placement_logits: Tensor, kappa: float, tau: float, noise: Tensor
) -> Tensor:
    """(rows, 6, groups) relaxed one-hot choice of a placement; `noise` is Gumbel, or 0 for none."""
    return torch.softmax((kappa * placement_logits + noise) / tau, dim=1)


def keep_from_placements(probabilities: Tensor) -> Tensor:
    """(rows, 6, groups) -> (rows, 4 * groups): expected keep of each weight; a group's sum is 2."""
    keep = torch.einsum("nig,ij->ngj", probabilities, placements_like(probabilities))
    return keep.reshape(keep.shape[0], -1)


def placement_gradient(probabilities: Tensor, keep_gradient: Tensor, slope: float) -> Tensor:
    """Gradient to the placement logits through the softmax.

    Args:
        probabilities: (rows, 6, groups) from `placement_probabilities`.
        keep_gradient: (rows, 4 * groups), dL / d(keep).
        slope: kappa / tau.
    """
    rows, _, groups = probabilities.shape
    by_group = keep_gradient.view(rows, groups, 4)
    gradient = torch.einsum("ngj,ij->nig", by_group, placements_like(probabilities))
    mean = (probabilities * gradient).sum(dim=1, keepdim=True)
    return slope * probabilities * (gradient - mean)
