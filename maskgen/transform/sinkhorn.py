"""Soft permutations: entropy-regularised assignment by Sinkhorn's iteration, and its gradient.

P minimises <C, P> + epsilon * sum P (log P - 1) over matrices whose rows and columns sum to 1
(arXiv 2601.22980, equation 4): P_ij = exp((f_i + g_j - C_ij) / epsilon). The iteration runs on
logarithms until all row sums are right, not for a fixed count: at a small epsilon twenty iterations
are far off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_RIDGE = 1e-9  # of a system that is singular where P is a permutation, and its answer irrelevant


@dataclass(frozen=True, slots=True)
class SoftPermutation:
    """What Sinkhorn's iteration ended with.

    Attributes:
        matrix: (batch, size, size); rows are channels, columns places. Columns sum to 1.
        column: (batch, size) g / epsilon, from which a later call may start.
        row_error: largest difference of a row sum from 1.
        iterations: how many it took.
    """

    matrix: Tensor
    column: Tensor
    row_error: float
    iterations: int


def soft_permutation(
    costs: Tensor, epsilon: float, tolerance: float, most: int, start: Tensor | None = None
) -> SoftPermutation:
    """The soft permutation of (batch, size, size) costs, differentiable in them.

    Args:
        costs: of putting channel i at place j.
        epsilon: temperature.
        tolerance: of the row sums.
        most: iterations, whatever the error then is; the result says.
        start: `column` of an earlier result for similar costs.
    """
    with torch.no_grad():
        kernel = -costs / epsilon
        column = torch.zeros_like(kernel[:, 0]) if start is None else start
        error, done = float("inf"), 0
        while error > tolerance and done < most:
            row = -torch.logsumexp(kernel + column[:, None], dim=2)
            column = -torch.logsumexp(kernel + row[:, :, None], dim=1)
            matrix = torch.exp(kernel + row[:, :, None] + column[:, None])
            error, done = float((matrix.sum(2) - 1).abs().max()), done + 1
    apply: Any = _ImplicitGradient.apply
    return SoftPermutation(apply(costs, matrix, epsilon), column, error, done)


class _ImplicitGradient(torch.autograd.Function):
    """The gradient at the fixed point, without going back through the iterations.

    With G = dL/dP, dL/dC = -P * (G - a_i - b_j) / epsilon, where a and b make its rows and columns
    sum to zero, as P's sums do not change.
    """

    @staticmethod
    def forward(ctx: Any, costs: Tensor, matrix: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(matrix)
        ctx.epsilon = epsilon
        return matrix.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (stored,) = ctx.saved_tensors
        matrix, gradient = stored.double(), gradients[0].double()
        weighted = matrix * gradient
        rows, columns = weighted.sum(2), weighted.sum(1)
        row_sums = matrix.sum(2)
        scaled = matrix / row_sums[:, :, None]
        size = matrix.shape[1]
        eye = torch.eye(size, dtype=torch.float64, device=matrix.device)
        # Any constant may move from a to b: fix it by the mean of b.
        system = torch.diag_embed(matrix.sum(1)) - matrix.transpose(1, 2) @ scaled
        system = system + 1.0 / size + _RIDGE * eye
        right = columns - (matrix.transpose(1, 2) @ (rows / row_sums)[:, :, None])[:, :, 0]
        b = torch.linalg.solve(system, right)
        a = (rows - (matrix @ b[:, :, None])[:, :, 0]) / row_sums
        change = -matrix * (gradient - a[:, :, None] - b[:, None]) / ctx.epsilon
        return change.to(stored.dtype), None, None


def hard_permutation(costs: Tensor) -> Tensor:
    """(batch, size, size) costs -> (batch, size): the channel at each place, as cheap as can be."""
    from scipy.optimize import linear_sum_assignment

    found = torch.empty(costs.shape[:2], dtype=torch.int64)
    for index, matrix in enumerate(costs.detach().double().cpu().numpy()):
        channels, places = linear_sum_assignment(matrix)
        found[index, torch.from_numpy(places)] = torch.from_numpy(channels)
    return found.to(costs.device)
