"""A linear layer whose frozen weight is masked by learnable logits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.learning.active_groups import ActiveGroups
from maskgen.learning.noise import NoiseKey, layer_number
from maskgen.learning.relaxation import Relaxation, Softness


@dataclass(slots=True)
class NoiseClock:
    """Where the run stands; one object, shared by all layers and set before each micro-batch.

    The backward pass of a micro-batch, recomputed activations included, must end before the clock
    moves on: that is what makes recomputation draw the same noise.
    """

    seed: int
    step: int = 0
    micro_batch: int = 0
    softness: Softness = field(default_factory=lambda: Softness(1.0, 1.0))
    mask: Literal["relaxed", "decided", "dense"] = "relaxed"

    def key(self, layer: int) -> NoiseKey:
        """The noise of one layer now."""
        return NoiseKey(self.seed, self.step, self.micro_batch, layer)


class _MaskedProduct(torch.autograd.Function):
    """y = x @ (weight * mask(logits)).T; gradients go to x and, in place, to `logits.grad`.

    The gradient of the logits is added to a buffer that the trainer owns instead of being returned:
    six floats per group are the largest tensors of a run, and a fresh copy for every micro-batch
    would cost more than computing it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, logits: Tensor, layer: MaskedLinear) -> Tensor:
        at, key = layer.clock.softness, layer.clock.key(layer.number)
        masked = layer.masked_weight(logits.detach(), at, key)
        ctx.save_for_backward(x, masked)
        ctx.layer, ctx.at, ctx.key = layer, at, key
        return F.linear(x, masked, layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        x, masked = ctx.saved_tensors
        layer: MaskedLinear = ctx.layer
        gradient = gradients[0]
        masked_gradient = layer.weight_gradient(gradient.flatten(0, -2), x.flatten(0, -2))
        layer.add_gradient(masked_gradient, ctx.at, ctx.key)
        return (gradient @ masked if ctx.needs_input_grad[0] else None), None, None


class MaskedLinear(nn.Module):
    """Replaces an `nn.Linear`: same weight, frozen, times the relaxed mask of `mask_logits`.

    Attributes:
        mask_logits: fp32 parameter, (out, planes, in / M); of active groups alone, compact, once
            the others are settled.
        prior: (out, in / M), the codes (`maskgen.learning.codes`) that mask movement is measured
            against.
        active: the groups that are still learned; None while all are.
    """

    weight: Tensor
    bias: Tensor | None
    prior: Tensor

    def __init__(
        self,
        name: str,
        linear: nn.Linear,
        prior: Tensor,
        logits: Tensor,
        relaxation: Relaxation[Any],
        clock: NoiseClock,
    ) -> None:
        super().__init__()
        self.name = name
        self.number = layer_number(name)
        self.relaxation = relaxation
        self.clock = clock
        self.register_buffer("weight", linear.weight.detach().contiguous(), persistent=False)
        bias = None if linear.bias is None else linear.bias.detach()
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("prior", prior, persistent=False)
        self.mask_logits = nn.Parameter(logits)
        self.active: ActiveGroups | None = None

    def gradient(self) -> Tensor:
        """`mask_logits.grad`, made on first use."""
        if self.mask_logits.grad is None:
            self.mask_logits.grad = torch.zeros_like(self.mask_logits)
        return self.mask_logits.grad

    def forward(self, x: Tensor) -> Tensor:
        if self.clock.mask == "dense":
            return F.linear(x, self.weight, self.bias)
        if self.clock.mask == "decided":
            return F.linear(x, self._decided_weight(), self.bias)
        if self.active is not None and not len(self.active):
            return F.linear(x, self._decided_weight(), self.bias)  # no gradient but the input's
        apply: Any = _MaskedProduct.apply
        product: Tensor = apply(x, self.mask_logits, self)
        return product

    def masked_weight(self, logits: Tensor, at: Softness, key: NoiseKey) -> Tensor:
        """(out, in): weight * soft mask."""
        if self.active is None:
            return self.relaxation.masked_weight(self.weight, logits, at, key)
        soft = self.relaxation.masked_weight(self.active.weight, logits, at, key)
        return self.active.masked(soft)

    def weight_gradient(self, gradient: Tensor, x: Tensor) -> Tensor:
        """dL / d(masked weight) from (tokens, out) and (tokens, in): (out, in), or compact."""
        if self.active is None:
            return gradient.T @ x
        return self.active.weight_gradient(gradient, x, self.relaxation.native)

    def add_gradient(self, masked_gradient: Tensor, at: Softness, key: NoiseKey) -> None:
        """Add to `gradient()`, given what `weight_gradient` found and the forward's key."""
        weight = self.weight if self.active is None else self.active.weight
        logits, gradient = self.mask_logits.detach(), masked_gradient.contiguous()
        self.relaxation.add_gradient(weight, logits, gradient, at, key, self.gradient())

    def _decided_weight(self) -> Tensor:
        scale, logits = self.clock.softness.scale, self.mask_logits.detach()
        if self.active is None:
            return self.weight * self.relaxation.keep(logits, self.prior, scale).to(self.weight)
        if not len(self.active):
            return self.active.masked(self.active.weight)
        keep = self.relaxation.keep(logits, self.active.prior, scale)
        return self.active.masked(self.active.weight * keep.to(self.weight))

    def margins(self) -> Tensor:
        """(out, in / M): how far the decision is ahead of the next one, in logits."""
        return self.relaxation.margins(self.mask_logits.detach())

    def settle(self, numbers: Tensor, codes: Tensor | None = None) -> None:
        """Learn on with some groups alone; `mask_logits` is a new parameter then, with theirs.

        Args:
            numbers: (A,) int64, ascending.
            codes: (out, in / M) of the others, if not as decided now; the logits of the active
                ones are then still to come.
        """
        decided = self.decide()[0] if codes is None else codes
        self.active = ActiveGroups(
            self.weight, decided, self.prior, numbers, self.relaxation.pattern
        )
        logits = self.active.gathered_planes(self.mask_logits.detach())
        self.mask_logits = nn.Parameter(logits)

    def decide(self) -> tuple[Tensor, int, float]:
        """Codes now, groups that differ from the prior, summed sharpness; 1 of a settled group."""
        scale, logits = self.clock.softness.scale, self.mask_logits.detach()
        if self.active is None:
            return self.relaxation.decide(logits, self.prior, scale)
        settled = self.prior.numel() - len(self.active)
        if not len(self.active):
            return self.active.codes, self.active.changed, float(settled)
        codes, changed, sharpness = self.relaxation.decide(logits, self.active.prior, scale)
        return self.active.decided(codes), self.active.changed + changed, settled + sharpness


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the submodule called `name`."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
