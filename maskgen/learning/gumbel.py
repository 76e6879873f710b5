"""MaskLLM's relaxation in torch: a Gumbel-softmax over the six patterns of each group.

Equations of arXiv 2409.17481 (section 3.2): y_i is proportional to exp((kappa * pi_i + g_i) / tau),
the soft mask is sum_i y_i * pattern_i, and the layer computes with weight * soft mask. This is the
reference for `maskgen/csrc/gumbel.h` and what runs on devices that have no native kernel.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from maskgen.format.patterns import PATTERNS


def patterns_like(tensor: Tensor) -> Tensor:
    """(6, 4) patterns with the tensor's device and type."""
    return torch.from_numpy(PATTERNS.astype(np.float32)).to(tensor)


def pattern_probabilities(
    pattern_logits: Tensor, kappa: float, tau: float, noise: Tensor
) -> Tensor:
    """(rows, 6, groups) relaxed one-hot choice of a pattern; `noise` is Gumbel, or 0 for none."""
    return torch.softmax((kappa * pattern_logits + noise) / tau, dim=1)


def keep_from_patterns(probabilities: Tensor) -> Tensor:
    """(rows, 6, groups) -> (rows, 4 * groups): expected keep of each weight; a group's sum is 2."""
    keep = torch.einsum("nig,ij->ngj", probabilities, patterns_like(probabilities))
    return keep.reshape(keep.shape[0], -1)


def pattern_gradient(probabilities: Tensor, keep_gradient: Tensor, slope: float) -> Tensor:
    """Gradient to the pattern logits through the softmax.

    Args:
        probabilities: (rows, 6, groups) from `pattern_probabilities`.
        keep_gradient: (rows, 4 * groups), dL / d(keep).
        slope: kappa / tau.
    """
    rows, _, groups = probabilities.shape
    by_group = keep_gradient.view(rows, groups, 4)
    gradient = torch.einsum("ngj,ij->nig", by_group, patterns_like(probabilities))
    mean = (probabilities * gradient).sum(dim=1, keepdim=True)
    return slope * probabilities * (gradient - mean)
