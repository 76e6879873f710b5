"""Magnitude pruning: keep the weights of largest absolute value (Han et al., NIPS 2015)."""

from __future__ import annotations

import torch
from torch import Tensor

from maskgen.methods.base import NoStatistic, PruneMethod


class Magnitude(PruneMethod[NoStatistic]):
    """Score |W|."""

    uses_calibration = False

    def statistic(self, width: int, device: torch.device) -> NoStatistic:
        return NoStatistic()

    def scores(self, weight: Tensor, statistic: NoStatistic) -> Tensor:
        return weight.abs()
