"""A linear layer whose mask follows from an order of its inputs that is being learned.

The weights stay where they are: the scores are put in order, masked, and the mask is put back, as
in arXiv 2601.22980. Forward passes use the assigned order and the hard mask; backward, the order
stands for the soft permutation (straight-through, as in PermLLM, arXiv 2510.10136).

What goes back through the mask is not PermLLM's softmax over a group's scores. That takes the mask
and the loss's slope at a place to be those of the channel that stands there now, and its gradient
hardly correlates with what a move does to the loss (docs/experiments.md). `order_gradient` counts
what the move itself keeps and drops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.format.pattern import Pattern
from maskgen.learning.native import native_module

LARGEST_BLOCK = 1024
"""Channels of the largest block that the native kernel takes."""


@dataclass(slots=True)
class Stage:
    """What all layers of a run compute now; one object, shared by them.

    Attributes:
        mask: by the order, or none.
        rows: most rows of a layer that gradients are taken from, others every time.
        generator: that draws them.
    """

    mask: Literal["ordered", "dense"]
    rows: int
    generator: torch.Generator


@dataclass(slots=True)
class BlockOrder:
    """The order of one group of channels, in blocks that are assigned apart.

    Attributes:
        places: (blocks, size): which channel of a block stands at each place.
        soft: (blocks, size, size) soft permutation of this step, a leaf that gathers gradients.
    """

    places: Tensor
    soft: Tensor


class OrderedLinear(nn.Module):
    """A frozen linear with a mask by order.

    Args:
        linear: to take the place of.
        scores: (N, K) of its weights.
        columns: (blocks, repeat, size) columns of the weight: a block's channels, once for each
            head that reads them.
        order: of the blocks' channels; shared by all readers of a group.
        stage: shared by all layers.
        pattern: of the mask.

    Attributes:
        native: kernels for the gradient; None for torch's functions.
    """

    weight: Tensor
    bias: Tensor | None
    scores: Tensor
    columns: Tensor

    def __init__(
        self,
        linear: nn.Linear,
        scores: Tensor,
        columns: Tensor,
        order: BlockOrder,
        stage: Stage,
        pattern: Pattern,
    ) -> None:
        super().__init__()
        self.order, self.stage, self.pattern = order, stage, pattern
        self.register_buffer("weight", linear.weight.detach(), persistent=False)
        bias = None if linear.bias is None else linear.bias.detach()
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.register_buffer("scores", self.to_blocks(scores), persistent=False)
        self._mask: Tensor | None = None
        fits = columns.device.type == "cpu" and columns.shape[2] <= LARGEST_BLOCK
        self.native = native_module() if fits else None

    def forward(self, x: Tensor) -> Tensor:
        if self.stage.mask == "dense":
            return F.linear(x, self.weight, self.bias)
        apply: Any = _MaskByOrder.apply
        mask: Tensor = apply(self.order.soft, self)
        return F.linear(x, self.weight * mask, self.bias)

    def to_blocks(self, matrix: Tensor) -> Tensor:
        """(N, K) -> (blocks, N * repeat, size): what belongs to each block of channels."""
        blocks, repeat, size = self.columns.shape
        picked = matrix[:, self.columns.reshape(-1)].view(-1, blocks, repeat, size)
        return picked.permute(1, 0, 2, 3).reshape(blocks, -1, size).contiguous()

    def from_blocks(self, blocked: Tensor) -> Tensor:
        """The way back."""
        blocks, repeat, size = self.columns.shape
        picked = blocked.view(blocks, -1, repeat, size).permute(1, 0, 2, 3)
        matrix = torch.empty_like(self.weight, dtype=blocked.dtype)
        matrix[:, self.columns.reshape(-1)] = picked.reshape(len(matrix), -1)
        return matrix

    def ordered(self, blocked: Tensor) -> Tensor:
        """(blocks, rows, size) by channel -> by place."""
        places = self.order.places[:, None].expand(-1, blocked.shape[1], -1)
        return blocked.gather(2, places)

    def drawn_rows(self, gradient: Tensor) -> tuple[Tensor, Tensor, float]:
        """Scores and gradients of some rows, in blocks, and how many rows each stands for.

        Args:
            gradient: (N, K).
        """
        blocks, repeat, size = self.columns.shape
        rows, most = len(gradient), max(self.stage.rows // repeat, 1)
        if rows <= most:
            return self.scores, self.to_blocks(gradient.to(self.scores.dtype)), 1.0
        drawn = torch.randperm(rows, generator=self.stage.generator)[:most].to(gradient.device)
        scores = self.scores.view(blocks, rows, repeat, size)[:, drawn].flatten(1, 2)
        return scores, self.to_blocks(gradient[drawn].to(scores.dtype)), rows / most

    def mask(self) -> Tensor:
        """(N, K) bool, what the assigned order keeps; made once for an order."""
        if self._mask is None:
            ordered = self.ordered(self.scores)
            groups = ordered.view(*ordered.shape[:2], -1, self.pattern.m)
            kept = torch.zeros_like(groups, dtype=torch.bool)
            best = _descending(groups)[..., : self.pattern.n]
            kept.scatter_(3, best, value=True)
            back = torch.empty_like(kept.view_as(ordered))
            places = self.order.places[:, None].expand(-1, ordered.shape[1], -1)
            back.scatter_(2, places, kept.view_as(ordered))
            self._mask = self.from_blocks(back)
        return self._mask

    def forget_mask(self) -> None:
        """The order has changed."""
        self._mask = None


class _MaskByOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, soft: Tensor, layer: OrderedLinear) -> Tensor:
        ctx.layer = layer
        return layer.mask().to(layer.weight.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return order_gradient(ctx.layer, gradients[0]), None


def order_gradient(layer: OrderedLinear, gradient: Tensor) -> Tensor:
    """(blocks, size, size) gradient of a layer's permutation, from that of its (N, K) mask.

    Entry [i, j] is what the loss changes by, to first order in the mask, when channel i stands at
    place j: in each row in which it beats the N-th of the others there, its weight is kept and that
    one's dropped. What does not depend on i is left out, since no permutation can change it.
    """
    scores, slopes, share = layer.drawn_rows(gradient)
    if layer.native is not None:
        found = scores.new_empty(layer.order.soft.shape)
        n, m = layer.pattern.n, layer.pattern.m
        layer.native.order_gradient(scores, slopes, layer.order.places, found, n, m)
        return found * share
    rival, rival_slopes = _rivals(layer.ordered(scores), layer.ordered(slopes), layer.pattern)
    found = torch.empty_like(layer.order.soft, dtype=scores.dtype)
    gain = torch.empty_like(rival)
    for channel in range(scores.shape[2]):
        one = slice(channel, channel + 1)
        torch.sub(slopes[:, :, one], rival_slopes, out=gain)
        found[:, channel] = gain.mul_(scores[:, :, one] > rival).sum(1)
    return found * share


def _descending(groups: Tensor) -> Tensor:
    """(..., m) places from the largest score to the smallest; equal ones by place."""
    return groups.sort(dim=-1, descending=True, stable=True).indices


def _rivals(scores: Tensor, slopes: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """For every place, the N-th score of the other places of its group, and that one's slope.

    Args:
        scores, slopes: (blocks, rows, size) by place.
    """
    n = pattern.n
    groups = scores.view(*scores.shape[:2], -1, pattern.m)
    best = _descending(groups)[..., : n + 1]
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(3, best[..., :n], value=True)
    # Without one that is kept, the next is.
    number = torch.where(kept, best[..., n:], best[..., n - 1 : n])
    rival_slopes = slopes.view(groups.shape).gather(3, number)
    return groups.gather(3, number).view_as(scores), rival_slopes.view_as(scores)
