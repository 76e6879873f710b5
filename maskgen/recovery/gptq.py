"""GPTQ (Frantar, Ashkboos, Hoefler and Alistarh, arXiv 2210.17323): rounding with error feedback.

Columns are rounded from first to last; what rounding takes from one is made up for by those after
it, as far as the layer's inputs let them. With a mask, dropping is made up for in the same pass, as
SparseGPT does (arXiv 2301.00774, section 3.5): the values then are for that mask alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskgen.methods.sparsegpt import BLOCK_COLUMNS
from maskgen.recovery.quantiser import STEP, Quantised, WeightGrid, quantise


def gptq(weight: Tensor, keep: Tensor | None, factor: Tensor, grid: WeightGrid) -> Quantised:
    """Algorithm 1 of the paper.

    Args:
        weight: (N, K) fp32, not modified.
        keep: (N, K) bool, what a mask keeps; None for all, whose grid stays that of the weights as
            they are, where otherwise a block's grid is fitted to what it has become.
        factor: (K, K), from `maskgen.methods.sparsegpt.inverse_factor`.
        grid: what kind.
    """
    kept = torch.ones_like(weight, dtype=torch.bool) if keep is None else keep
    found = quantise(weight, kept, grid)
    step, low, high = (1, -127, 127) if found.minima is None else (STEP, 0, 15)
    width = weight.shape[1]
    weight, factor = weight.clone(), factor.to(weight.dtype)
    numbers, scales = torch.zeros_like(found.numbers), found.scales.clone()
    minima = None if found.minima is None else found.minima.expand_as(scales).clone()
    for start in range(0, width, BLOCK_COLUMNS):
        end = min(start + BLOCK_COLUMNS, width)
        # Transposed, (columns of this block, N), so that what changes together lies together.
        part = weight[:, start:end].T.contiguous()
        errors = torch.empty_like(part)
        local = factor[start:end, start:end]
        for column in range(end - start):
            block, place = divmod(start + column, grid.block)
            if keep is not None and place == 0:
                now = part[column : column + grid.block].T
                fitted = quantise(now, keep[:, start + column :][:, : now.shape[1]], grid)
                scales[:, block] = fitted.scales[:, 0]
                if minima is not None and fitted.minima is not None:
                    minima[:, block] = fitted.minima.expand_as(fitted.scales)[:, 0]
            minimum = 0 if minima is None else minima[:, block, 0]
            scale = scales[:, block, 0]
            number = ((part[column] / scale - minimum) / step).round_().clamp_(low, high)
            value = ((number * step + minimum) * scale).masked_fill_(~kept[:, start + column], 0)
            errors[column] = (part[column] - value) / local[column, column]
            part[column:].addr_(local[column, column:], errors[column], alpha=-1)
            numbers[:, block, place] = number
        weight[:, end:].addmm_(errors.T, factor[start:end, end:], alpha=-1)
    return Quantised(numbers, scales, minima if grid.minima else found.minima)
