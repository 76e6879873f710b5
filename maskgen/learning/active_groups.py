"""Learning on with few groups: those whose decision is the closest, all others decided.

Few groups ever change: 0.04 to 1 % in the runs of docs/experiments.md. If those are among the
closest after some steps, the rest needs neither logits nor gradient nor optimiser state from then
on, and drawing its masks anew in every pass changes nothing but noise.
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
    """The groups of a layer that are still learned, and the weights of the others.

    What is learned of them has a layout of its own, *compact*: (R, M * A / R) in place of a layer's
    (out, in), (R, planes, A / R) for logits.

    Args:
        weight: (out, in), unmasked.
        codes: (out, in / M), of all groups as decided now.
        prior: (out, in / M), that movement is measured against.
        numbers: (A,) int64, which groups stay active, counted row by row, in ascending order.
        pattern: of the masks.

    Attributes:
        numbers: as given.
        codes: as given; those of active groups mean nothing.
        changed: groups among the decided ones that differ from the prior.
        weight: compact, of the active groups, unmasked.
        prior: compact, (R, A / R).
    """

    def __init__(
        self, weight: Tensor, codes: Tensor, prior: Tensor, numbers: Tensor, pattern: Pattern
    ) -> None:
        self.numbers, self.codes, self._pattern = numbers, codes, pattern
        rows = _ROWS if len(numbers) % _ROWS == 0 else 1
        self._shape = rows, len(numbers) // rows
        self._masked = weight * keep_tensor(codes, pattern)
        self.weight = self.gathered(weight)
        self.prior = prior.flatten()[numbers].view(self._shape)
        differs = (codes != prior).flatten()
        self.changed = int(differs.sum() - differs[numbers].sum())

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
        few = len(self) < _SAMPLED_BELOW * self.codes.numel()
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
        codes = self.codes.clone()
        codes.view(-1)[self.numbers] = compact.flatten()
        return codes


def closest_groups(margins: Sequence[Tensor], share: float) -> list[Tensor]:
    """Numbers of the groups with the smallest margins, over all layers, ascending by layer.

    A layer's number of them is rounded up to a multiple of `_ROWS` where it has so many groups.

    Args:
        margins: (rows, groups) of every layer: how far its decision is ahead of the next one.
        share: of all groups.
    """
    flat = [margin.flatten() for margin in margins]
    every = torch.cat(flat)
    count = max(1, round(share * len(every)))
    limit = torch.kthvalue(every, count).values
    chosen = []
    for margin in flat:
        close = int((margin <= limit).sum())
        rounded = min(-(-close // _ROWS) * _ROWS, len(margin))
        chosen.append(margin.topk(rounded, largest=False).indices.sort().values)
    return chosen
