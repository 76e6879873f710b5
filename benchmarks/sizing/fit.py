"""Step costs from requests that do not queue: single prompts, and batches that decode together."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from statistics import median

import numpy as np
from scipy.optimize import nnls

from benchmarks.sizing.replica_model import StepCosts


def fit_costs(
    single_first_token: Mapping[int, float], gap_by_batch: Mapping[int, float]
) -> StepCosts:
    """Least squares in relative error; no cost is negative.

    Args:
        single_first_token: tokens of a prompt -> seconds to the first token, alone.
        gap_by_batch: sequences -> seconds between tokens while they decode and nothing else runs.

    Raises:
        ValueError: fewer than two of either, or a first token does not take longer for a longer
            prompt: the machine was busy.
    """
    fixed, per_sequence = _line(gap_by_batch)
    beyond = {prompt: seconds - fixed for prompt, seconds in single_first_token.items()}
    outside, per_prompt_token = _line(beyond)
    costs = StepCosts(fixed, per_sequence, per_prompt_token, outside)
    if not per_prompt_token > 0:
        raise ValueError(f"{costs} says that prompts cost nothing: measure on a quiet machine")
    return costs


def _line(points: Mapping[int, float]) -> tuple[float, float]:
    """Intercept and slope, neither below 0."""
    if len(points) < 2:
        raise ValueError(f"two points make a line, not {len(points)}")
    x, y = np.array(list(points)), np.array(list(points.values()))
    terms = np.stack((np.ones_like(y), x), axis=1) / y[:, None]
    (intercept, slope), _ = nnls(terms, np.ones_like(y))
    return float(intercept), float(slope)


def decode_gap(answers: list[list[float]]) -> float:
    """Median seconds between tokens while all answers are under way.

    Args:
        answers: seconds of each answer's tokens.

    Raises:
        ValueError: no gap lies in that time.
    """
    begin, end = max(a[0] for a in answers), min(a[-1] for a in answers)
    gaps = [
        after - before
        for answer in answers
        for before, after in pairwise(answer)
        if begin <= before and after <= end
    ]
    if not gaps:
        raise ValueError("the answers are too short: no two tokens while all were under way")
    return median(gaps)
