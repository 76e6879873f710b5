"""How a quantity moves over a run; `progress` goes from 0 (first step) to 1 (last)."""

from __future__ import annotations

import math


def linear(start: float, end: float, progress: float) -> float:
    """Straight line (MaskLLM's kappa, tau and regularisation)."""
    return start + (end - start) * min(max(progress, 0.0), 1.0)


def exponential(start: float, end: float, progress: float) -> float:
    """Geometric interpolation (RoI's tau and lambda); both ends above 0."""
    return float(start * (end / start) ** min(max(progress, 0.0), 1.0))


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from start to end (the learning rate)."""
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
