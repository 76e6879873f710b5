"""SparseSwaps (arXiv 2512.10922): Wanda's mask, refined against the layer's own error.

A row's error is e^T G e, where e holds its dropped weights and G the second moments of the inputs.
Exchanging a kept weight k with a dropped weight p of its group changes it by

    2 (w_k c_k - w_p c_p) + w_k^2 G_kk + w_p^2 G_pp - 2 w_k w_p G_kp,    c = G e.

Weights stay as they are, so the mask can be swapped, and learning can start from it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskgen.format.placements import codes_from_keep, keep_highest
from maskgen.least_squares import damped
from maskgen.methods.base import PrunedLayer, PruneMethod
from maskgen.methods.sparsegpt import Hessian
from maskgen.methods.wanda import wanda_scores

SWEEPS = 5
"""Over all groups, at most; later ones change little."""


def swap(weight: Tensor, keep: Tensor, gram: Tensor, group: int, sweeps: int = SWEEPS) -> Tensor:
    """The mask after sweeps in which every group of a row makes its best exchange, if it gains.

    All rows are handled at once, one group after the other.

    Args:
        weight: (N, K) fp32.
        keep: (N, K) bool, where to start.
        gram: (K, K) fp32, second moments of the inputs.
        group: inputs among which weights are exchanged, a divisor of K.
        sweeps: over all groups, at most.

    Returns:
        (N, K) bool: as many kept in each group, and no row's error is larger than before.
    """
    keep = keep.clone()
    slope = weight.masked_fill(keep, 0) @ gram
    for _ in range(sweeps):
        swapped = 0
        for start in range(0, weight.shape[1], group):
            here = slice(start, start + group)
            rows, out, back = _best_swaps(
                weight[:, here], keep[:, here], slope[:, here], gram[here, here]
            )
            if len(rows):
                keep[rows, start + out], keep[rows, start + back] = False, True
                slope[rows] += weight[rows, start + out, None] * gram[start + out]
                slope[rows] -= weight[rows, start + back, None] * gram[start + back]
                swapped += len(rows)
        if not swapped:
            break
    return keep


def _best_swaps(
    weight: Tensor, keep: Tensor, slope: Tensor, gram: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows that gain, and which of their weights go out and come back; of one group."""
    alone = weight.square() * gram.diagonal()
    leave = (2 * weight * slope + alone).masked_fill(~keep, torch.inf)
    enter = (alone - 2 * weight * slope).masked_fill(keep, torch.inf)
    together = 2 * weight[:, :, None] * weight[:, None, :] * gram
    gain = leave[:, :, None] + enter[:, None, :] - together
    least, which = gain.flatten(1).min(dim=1)
    # Rounding must not let two weights change places for ever.
    rows = (least < -1e-6 * alone.sum(dim=1)).nonzero()[:, 0]
    chosen = which[rows]
    return rows, chosen // weight.shape[1], chosen % weight.shape[1]


class SparseSwaps(PruneMethod[Hessian]):
    """Wanda's mask with weights exchanged inside groups."""

    def statistic(self, width: int, device: torch.device) -> Hessian:
        return Hessian(width, device)

    def prune_layer(self, weight: Tensor, statistic: Hessian) -> PrunedLayer:
        norms = statistic.sum.diagonal().sqrt()
        scores = wanda_scores(weight, norms).cpu().numpy()
        keep = torch.from_numpy(keep_highest(scores, self.pattern)).to(weight.device)
        refined = swap(weight, keep, damped(statistic.sum), self.pattern.m)
        return PrunedLayer(codes_from_keep(refined.cpu().numpy(), self.pattern))
