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
        return picked.permute(1, 0, 2, 3).reshape(blocks, -1, size)

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

    def drawn_rows(self, slopes: Tensor) -> tuple[Tensor, Tensor, float]:
        """Scores and (blocks, rows, size) slopes of some rows, and how many each stands for."""
        rows, most = slopes.shape[1], self.stage.rows
        if rows <= most:
            return self.scores, slopes, 1.0
        drawn = torch.randperm(rows, generator=self.stage.generator)[:most].to(slopes.device)
        return self.scores[:, drawn], slopes[:, drawn], rows / most

    def mask(self) -> Tensor:
        """(N, K) bool, what the assigned order keeps; made once for an order."""
        if self._mask is None:
            ordered = self.ordered(self.scores)
            groups = ordered.view(*ordered.shape[:2], -1, self.pattern.m)
            kept = torch.zeros_like(groups, dtype=torch.bool)
            kept.scatter_(3, groups.topk(self.pattern.n, dim=3).indices, value=True)
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
    scores, slopes, share = layer.drawn_rows(layer.to_blocks(gradient.to(layer.scores.dtype)))
    rival, rival_slopes = _rivals(layer.ordered(scores), layer.ordered(slopes), layer.pattern)
    found = torch.empty_like(layer.order.soft, dtype=scores.dtype)
    gain = torch.empty_like(rival)
    for channel in range(scores.shape[2]):
        one = slice(channel, channel + 1)
        torch.sub(slopes[:, :, one], rival_slopes, out=gain)
        found[:, channel] = gain.mul_(scores[:, :, one] > rival).sum(1)
    return found * share


def _rivals(scores: Tensor, slopes: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """For every place, the N-th score of the other places of its group, and that one's slope.

    Args:
        scores, slopes: (blocks, rows, size) by place.
    """
    n, m = pattern.n, pattern.m
    groups = scores.view(*scores.shape[:2], -1, m)
    group_slopes = slopes.view(groups.shape)
    rival, rival_slopes = torch.empty_like(groups), torch.empty_like(groups)
    for slot in range(m):
        others = [other for other in range(m) if other != slot]
        best = groups[..., others].topk(n, dim=3)
        rival[..., slot] = best.values[..., -1]
        last = best.indices[..., -1:]
        rival_slopes[..., slot] = group_slopes[..., others].gather(3, last)[..., 0]
    return rival.view_as(scores), rival_slopes.view_as(scores)
