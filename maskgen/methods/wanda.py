"""Wanda (Sun et al., "A Simple and Effective Pruning Approach for LLMs", arXiv 2306.11695)."""

from __future__ import annotations

import torch
from torch import Tensor

from maskgen.methods.base import PruneMethod, SquaredNorms


def wanda_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """|W_ij| * ||X_j||_2, equation 1.

    Args:
        weight: (N, K).
        norms: (K,), Euclidean norm of each input feature over the calibration tokens.
    """
    return weight.abs() * norms


class Wanda(PruneMethod[SquaredNorms]):
    """Score `wanda_scores`."""

    def statistic(self, width: int, device: torch.device) -> SquaredNorms:
        return SquaredNorms(width, device)

    def scores(self, weight: Tensor, statistic: SquaredNorms) -> Tensor:
        return wanda_scores(weight, statistic.norms)
