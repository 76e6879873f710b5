"""RIA (Zhang et al., "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language
Models", ICLR 2024), without its channel permutation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskgen.methods.base import PruneMethod, SquaredNorms

ACTIVATION_POWER = 0.5
"""The paper's exponent `a` of the input norm."""


def ria_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """Relative importance and activations.

    (|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) * ||X_j||_2 ** 0.5, where i runs over the N
    outputs and j over the K inputs. A row or column of zeros contributes nothing.

    Args:
        weight: (N, K).
        norms: (K,), Euclidean norm of each input feature over the calibration tokens.
    """
    magnitude = weight.abs()
    smallest = torch.finfo(magnitude.dtype).tiny
    by_input = magnitude / magnitude.sum(dim=0, keepdim=True).clamp_min(smallest)
    by_output = magnitude / magnitude.sum(dim=1, keepdim=True).clamp_min(smallest)
    return (by_input + by_output) * norms**ACTIVATION_POWER


class Ria(PruneMethod[SquaredNorms]):
    """Score `ria_scores`."""

    def statistic(self, width: int, device: torch.device) -> SquaredNorms:
        return SquaredNorms(width, device)

    def scores(self, weight: Tensor, statistic: SquaredNorms) -> Tensor:
        return ria_scores(weight, statistic.norms)
