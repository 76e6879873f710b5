"""Learning few groups: those that would gain the most from another placement, all others decided.

Few groups ever change: 0.04 to 1 % in the runs of docs/experiments.md. The first steps of a run
therefore learn nothing and only sum up the gradient of the masked weights, which says to first
order what an exchange of a kept weight for a dropped one would gain. From then on the other groups
need neither logits nor gradient nor optimiser state.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from maskgen.format.pattern import Pattern
from maskgen.learning.codes import keep_tensor

_ROWS = 64
"""Active groups lie in so many rows if they can: kernels deal rows out to threads."""
_SAMPLED_BELOW = 0.15
"""Share of active groups above which the whole product is about as fast as theirs alone."""


class ActiveGroups:
    """The groups of a layer that are learned, and the masked weights of the others.

    What is learned of them has a layout of its own, *compact*: (R, M * A / R) in place of a layer's
    (out, in), (R, planes, A / R) for logits.

    Args:
        weight: (out, in), unmasked.
        prior: (out, in / M), codes; those of groups that are not learned stay.
        numbers: (A,) int64, which groups are learned, counted row by row, in ascending order.
        pattern: of the masks.

    Attributes:
        numbers: as given.
        weight: compact, unmasked.
        prior: compact, (R, A / R).
    """

    def __init__(self, weight: Tensor, prior: Tensor, numbers: Tensor, pattern: Pattern) -> None:
        self.numbers, self._codes, self._pattern = numbers, prior, pattern
        rows = _ROWS if len(numbers) % _ROWS == 0 else 1
        self._shape = rows, len(numbers) // rows
        self._masked = weight * keep_tensor(prior, pattern)
        self.weight = self.gathered(weight)
        self.prior = prior.flatten()[numbers].view(self._shape)

    def __len__(self) -> int:
        return len(self.numbers)

    def gathered(self, weight: Tensor) -> Tensor:
        """(out, in) -> compact."""
        rows, columns = self._shape
        m = self._pattern.m
        return weight.reshape(-1, m)[self.numbers].view(rows, columns * m)

    def gathered_planes(self, planes: Tensor) -> Tensor:
        """(out, planes, in / M), as logits lie -> compact."""
        groups = planes.shape[2]
        of_each = planes[self.numbers // groups, :, self.numbers % groups]
        return of_each.view(*self._shape, planes.shape[1]).transpose(1, 2).contiguous()

    def weight_gradient(self, gradient: Tensor, x: Tensor, native: ModuleType | None) -> Tensor:
        """Compact, in the type of `x`: what `gathered` takes from gradient^T x.

        Args:
            gradient: (tokens, out), of the layer's outputs.
            x: (tokens, in).
            native: kernels; None for torch's functions.
        """
        few = len(self) < _SAMPLED_BELOW * self._codes.numel()
        if native is None or not few:
            return self.gathered(gradient.T @ x)
        products = x.new_zeros((len(self), self._pattern.m), dtype=torch.float32)
        native.sampled_products(gradient.contiguous(), x.contiguous(), self.numbers, products)
        rows, columns = self._shape
        return products.to(x.dtype).view(rows, columns * self._pattern.m)

    def masked(self, compact: Tensor) -> Tensor:
        """The whole layer's masked weight, given that of the active groups.

        The tensor is the same every time and keeps what it was given last.
        """
        if len(self):
            self._masked.view(-1, self._pattern.m)[self.numbers] = compact.view(-1, self._pattern.m)
        return self._masked

    def decided(self, compact: Tensor) -> Tensor:
        """(out, in / M) codes of the whole layer, given those of the active groups."""
        codes = self._codes.clone()
        codes.view(-1)[self.numbers] = compact.flatten()
        return codes


def exchange_gains(weight: Tensor, gradient: Tensor, keep: Tensor, pattern: Pattern) -> Tensor:
    """(out, in / M): what the loss falls by, to first order, at the best exchange in a group.

    With s = weight * gradient = dL / d(mask), dropping weight a for weight b changes the loss by
    s_b - s_a.

    Args:
        weight: (out, in), unmasked.
        gradient: (out, in) dL / d(masked weight).
        keep: (out, in) bool.
    """
    slope = (weight.float() * gradient.float()).view(weight.shape[0], -1, pattern.m)
    kept = keep.view(slope.shape)
    worst_kept = slope.masked_fill(~kept, -torch.inf).amax(dim=2)
    best_dropped = slope.masked_fill(kept, torch.inf).amin(dim=2)
    return worst_kept - best_dropped


def largest_gains(gains: Sequence[Tensor], share: float) -> list[Tensor]:
    """Numbers of the groups with the largest gains, over all layers, ascending by layer.

    A layer's number of them is rounded up to a multiple of `_ROWS` where it has so many groups.

    Args:
        gains: (out, in / M) of every layer.
        share: of all groups.
    """
    flat = [gain.flatten() for gain in gains]
    every = torch.cat(flat)
    count = max(1, round(share * len(every)))
    limit = torch.kthvalue(every, len(every) - count + 1).values
    chosen = []
    for gain in flat:
        close = int((gain >= limit).sum())
        rounded = min(-(-close // _ROWS) * _ROWS, len(gain))
        chosen.append(gain.topk(rounded).indices.sort().values)
    return chosen
