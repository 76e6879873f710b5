"""The sum of the s smallest numbers, which is zero when as many have vanished."""

from __future__ import annotations

import torch
from torch import Tensor


def bottom(scores: Tensor, count: int) -> Tensor:
    """(count,) places of the smallest of (size,) scores; of equal ones, the first."""
    return torch.sort(scores, stable=True).indices[:count]


def bottom_sum(scores: Tensor, count: int) -> Tensor:
    """S_s of UVC (arXiv 2203.08243): the sum of the `count` smallest scores."""
    return torch.sort(scores).values[:count].sum()


def bottom_slope(scores: Tensor, count: int) -> Tensor:
    """dS_s/ds, as UVC defines it: the smallest score that S_s does not contain.

    The largest one, if it contains all.
    """
    return torch.sort(scores).values[min(count, len(scores) - 1)]
