"""SparseGPT (Frantar and Alistarh, "Massive Language Models Can Be Accurately Pruned in One-Shot",
arXiv 2301.00774).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.placements import Codes, code_dtype, keep_from_codes, project
from maskgen.methods.base import PrunedLayer, PruneMethod, Statistic

DAMPING = 0.01
"""Share of the Hessian's mean diagonal that is added to its diagonal, as in the paper's code."""
BLOCK_COLUMNS = 128
"""Columns whose updates of the rest of the matrix are applied at once."""


class Hessian(Statistic):
    """Second moments of a layer's inputs.

    Attributes:
        sum: (K, K) fp32, sum of x x^T over all tokens.
        tokens: how many.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.sum = torch.zeros(width, width, dtype=torch.float32, device=device)
        self.tokens = 0

    def add(self, inputs: Tensor) -> None:
        self.sum.addmm_(inputs.T, inputs)
        self.tokens += inputs.shape[0]


def inverse_factor(hessian_sum: Tensor, tokens: int, damping: float = DAMPING) -> Tensor:
    """Upper Cholesky factor U of the inverse Hessian, U^T U = H^-1.

    H = (2 / tokens) X X^T + damping * mean(diagonal) * I, and 1 on the diagonal of inputs that are
    always zero. Factored in fp64: in fp32 wide layers fail to be positive definite.

    Args:
        hessian_sum: (K, K), sum of x x^T.

    Returns:
        (K, K) fp64.

    Raises:
        ValueError: H is not positive definite even with the damping.
    """
    hessian = hessian_sum.double() * (2 / max(tokens, 1))
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    lower, failed = torch.linalg.cholesky_ex(hessian)
    if failed or not bool(torch.isfinite(lower).all()):
        raise ValueError(
            f"the Hessian of {tokens} tokens is not positive definite with damping {damping}; "
            "give more calibration text"
        )
    factor: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return factor


def sparsegpt(
    weight: Tensor, factor: Tensor, pattern: Pattern = TWO_FOUR, block: int = BLOCK_COLUMNS
) -> tuple[Codes, Tensor]:
    """Algorithm 1 of the paper with the n:m rule of its section 3.3.

    At each group the weights of least w^2 / U_ii^2 are dropped, judged on weights that earlier
    columns have already updated; the error of a dropped weight is spread over the columns after
    it.

    Args:
        weight: (N, K), not modified.
        factor: (K, K), from `inverse_factor`; computations run in the type of `weight`.
        pattern: N:M; K is a multiple of M.
        block: columns at a time, rounded down to whole groups.

    Returns:
        (N, K/M) codes, and the updated (N, K) weight, zero where the codes drop.
    """
    weight = weight.clone()
    factor = factor.to(weight.dtype)
    rows, columns = weight.shape
    size = pattern.m
    block = max(block // size, 1) * size
    codes = np.empty((rows, columns // size), dtype=code_dtype(pattern))
    for start in range(0, columns, block):
        end = min(start + block, columns)
        # Transposed, (columns of this block, N), so that what changes together lies together.
        part = weight[:, start:end].T.contiguous()
        errors = torch.empty_like(part)
        local = factor[start:end, start:end]
        for column in range(end - start):
            if column % size == 0:
                group = slice(column, column + size)
                scores = (part[group] / local.diagonal()[group, None]).square()
                chosen = project(scores.T.cpu().numpy(), pattern)
                codes[:, (start + column) // size] = chosen[:, 0]
                keep = torch.from_numpy(keep_from_codes(chosen, pattern)).to(weight.device)
            kept = keep[:, column % size]
            errors[column] = part[column].masked_fill(kept, 0) / local[column, column]
            part[column:].addr_(local[column, column:], errors[column], alpha=-1)
            part[column].masked_fill_(~kept, 0)
        weight[:, start:end] = part.T
        weight[:, end:].addmm_(errors.T, factor[start:end, end:], alpha=-1)
    return codes, weight


class SparseGPT(PruneMethod[Hessian]):
    """SparseGPT's choice of weights, with the original values kept ("mask only").

    The reconstruction still runs, because later choices in a row depend on it, but only the choice
    is used.
    """

    def statistic(self, width: int, device: torch.device) -> Hessian:
        return Hessian(width, device)

    def scores(self, weight: Tensor, statistic: Hessian) -> Tensor:
        """w^2 / [H^-1]_jj: the error of dropping a weight alone, the others making up for it."""
        factor = inverse_factor(statistic.sum, statistic.tokens)
        return (weight.square() / factor.square().sum(dim=0)).float()

    def prune_layer(self, weight: Tensor, statistic: Hessian) -> PrunedLayer:
        codes, _ = self._reconstruct(weight, statistic)
        return PrunedLayer(codes)

    def _reconstruct(self, weight: Tensor, statistic: Hessian) -> tuple[Codes, Tensor]:
        dead = statistic.sum.diagonal() == 0
        factor = inverse_factor(statistic.sum, statistic.tokens)
        return sparsegpt(weight.masked_fill(dead, 0), factor, self.pattern)


class SparseGPTUpdate(SparseGPT):
    """SparseGPT as published: the kept weights change to make up for the dropped ones."""

    updates_weights = True

    def prune_layer(self, weight: Tensor, statistic: Hessian) -> PrunedLayer:
        return PrunedLayer(*self._reconstruct(weight, statistic))
