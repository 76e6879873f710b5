"""A relaxation turns mask logits into a differentiable mask: the three that methods learn with.

All take the same two numbers, `scale` and `tau`, so the layer and the trainer need not know which
one they run. The gradient is written by hand because it recomputes the noise from its key instead
of keeping any of the planes for the backward pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import astuple, dataclass
from types import ModuleType
from typing import Generic, TypeVar

import torch
from torch import Tensor

from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.learning import entropic_topk, gumbel, relaxed_topk
from maskgen.learning.codes import codes_from_planes, keep_tensor
from maskgen.learning.mask_sampling import keep_from_planes, top_n
from maskgen.learning.noise import NoiseKey, gumbels


@dataclass(frozen=True, slots=True)
class Softness:
    """Where in its schedule a relaxation stands.

    Attributes:
        scale: kappa (multiplies placement logits) or lambda (divides weight logits).
        tau: temperature.
        regularisation: lambda of -lambda * sum((weight * mask)^2), already divided by the number
            of backward passes in a step.
    """

    scale: float
    tau: float
    regularisation: float = 0.0


Kernel = Callable[..., None]
Soft = TypeVar("Soft")


class Relaxation(ABC, Generic[Soft]):
    """Mask logits (rows, planes, groups) <-> masked weight (rows, M * groups).

    `Soft` is what torch's functions make of logits and noise, for both directions.

    Attributes:
        native: kernels for this pattern; None for torch's functions.
        pattern: of the masks.
        planes: logits of a group.
    """

    def __init__(self, native: ModuleType | None, pattern: Pattern = TWO_FOUR) -> None:
        self.native = native
        self.pattern = pattern
        self.planes = self._planes()

    def masked_weight(self, weight: Tensor, logits: Tensor, at: Softness, key: NoiseKey) -> Tensor:
        """weight * soft mask, in the weight's type."""
        if self.native is not None:
            masked = torch.empty_like(weight)
            forward, _ = self._kernels(self.native)
            forward(weight, logits, masked, *self._numbers(at), *astuple(key))
            return masked
        keep = self._soft_keep(self._relaxed(logits, at, key))
        return (weight.float() * keep).to(weight.dtype)

    def add_gradient(
        self,
        weight: Tensor,
        logits: Tensor,
        masked_gradient: Tensor,
        at: Softness,
        key: NoiseKey,
        out: Tensor,
    ) -> None:
        """Add dL / d(logits) to `out`, given dL / d(masked weight) and the forward's key."""
        if self.native is not None:
            _, backward = self._kernels(self.native)
            numbers = (*self._numbers(at), at.regularisation)
            backward(weight, logits, masked_gradient, out, *numbers, *astuple(key))
            return
        soft = self._relaxed(logits, at, key)
        w = weight.float()
        pull = 2.0 * at.regularisation * w * self._soft_keep(soft)
        out += self._to_logits(soft, w * (masked_gradient.float() - pull), at)

    @abstractmethod
    def _planes(self) -> int: ...

    @abstractmethod
    def _kernels(self, native: ModuleType) -> tuple[Kernel, Kernel]:
        """Forward and backward."""

    def _numbers(self, at: Softness) -> tuple[float, ...]:
        """What the kernels take between arrays and noise key."""
        return at.scale, at.tau

    @abstractmethod
    def _relaxed(self, logits: Tensor, at: Softness, key: NoiseKey) -> Soft: ...

    @abstractmethod
    def _soft_keep(self, soft: Soft) -> Tensor:
        """(rows, M * groups)."""

    @abstractmethod
    def _to_logits(self, soft: Soft, keep_gradient: Tensor, at: Softness) -> Tensor:
        """dL / d(logits) from dL / d(keep), (rows, M * groups)."""

    def decide(self, logits: Tensor, prior: Tensor, scale: float) -> tuple[Tensor, int, float]:
        """Final codes, how many differ from the prior's, and the summed sharpness.

        Sharpness of a group is the probability, without noise, of the placement that is decided on,
        or of the weights that are kept.
        """
        if self.native is not None and self.pattern == TWO_FOUR:
            codes = torch.empty_like(prior)
            changed, sharpness = self.native.decide(logits, codes, prior, scale)
            return codes, int(changed), float(sharpness)
        codes = self._codes(logits).to(prior.dtype)
        changed = int((codes != prior).sum())
        return codes, changed, self._sharpness(logits, scale)

    def margins(self, logits: Tensor) -> Tensor:
        """(rows, groups): how far the logits of what is decided on are ahead of the next best."""
        first = self._decided_logits
        ordered = logits.topk(first + 1, dim=1).values
        return ordered[:, first - 1] - ordered[:, first]

    @property
    @abstractmethod
    def _decided_logits(self) -> int:
        """How many of a group's logits a decision picks."""

    def keep(self, logits: Tensor, prior: Tensor, scale: float) -> Tensor:
        """(rows, M * groups) bool: what `decide` decides on."""
        return keep_tensor(self.decide(logits, prior, scale)[0], self.pattern)

    @abstractmethod
    def _codes(self, logits: Tensor) -> Tensor: ...

    @abstractmethod
    def _sharpness(self, logits: Tensor, scale: float) -> float: ...


class GumbelPlacements(Relaxation[Tensor]):
    """MaskLLM: Gumbel-softmax over a logit per placement; `scale` is kappa."""

    def _planes(self) -> int:
        return self.pattern.placements

    @property
    def _decided_logits(self) -> int:
        return 1

    def _kernels(self, native: ModuleType) -> tuple[Kernel, Kernel]:
        return native.gumbel_forward, native.gumbel_backward

    def _relaxed(self, logits: Tensor, at: Softness, key: NoiseKey) -> Tensor:
        rows, _, groups = logits.shape
        noise = gumbels(rows, self.planes, groups, key, logits.device)
        return gumbel.placement_probabilities(logits, at.scale, at.tau, noise)

    def _soft_keep(self, soft: Tensor) -> Tensor:
        return gumbel.keep_from_placements(soft, self.pattern)

    def _to_logits(self, soft: Tensor, keep_gradient: Tensor, at: Softness) -> Tensor:
        return gumbel.placement_gradient(soft, keep_gradient, at.scale / at.tau, self.pattern)

    def _codes(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=1)

    def _sharpness(self, logits: Tensor, scale: float) -> float:
        return float(torch.softmax(scale * logits, dim=1).amax(dim=1).sum())


class TopN(Relaxation[Soft]):
    """RoI: Gumbel top-n of a logit per weight; `scale` is lambda."""

    def _planes(self) -> int:
        return self.pattern.m

    @property
    def _decided_logits(self) -> int:
        return self.pattern.n

    def _noise(self, logits: Tensor, key: NoiseKey) -> Tensor:
        rows, _, groups = logits.shape
        return gumbels(rows, self.planes, groups, key, logits.device)

    def _kept(self, logits: Tensor) -> Tensor:
        return top_n(logits, self.pattern.n)

    def _codes(self, logits: Tensor) -> Tensor:
        return codes_from_planes(self._kept(logits), self.pattern)

    def _sharpness(self, logits: Tensor, scale: float) -> float:
        return float((torch.softmax(logits / scale, dim=1) * self._kept(logits)).sum())


class SequentialTopN(TopN[list[relaxed_topk.Choice]]):
    """RoI's own: one choice after the other."""

    def _kernels(self, native: ModuleType) -> tuple[Kernel, Kernel]:
        return native.topk_forward, native.topk_backward

    def _relaxed(self, logits: Tensor, at: Softness, key: NoiseKey) -> list[relaxed_topk.Choice]:
        noise = self._noise(logits, key)
        return relaxed_topk.relax_top_n(logits, self.pattern.n, at.scale, at.tau, noise)

    def _soft_keep(self, soft: list[relaxed_topk.Choice]) -> Tensor:
        return relaxed_topk.keep_from_choices(soft)

    def _to_logits(
        self, soft: list[relaxed_topk.Choice], keep_gradient: Tensor, at: Softness
    ) -> Tensor:
        return relaxed_topk.top_n_gradient(soft, keep_gradient, at.scale, at.tau)


class EntropicTopN(TopN[Tensor]):
    """All choices at once, by entropic optimal transport (`entropic_topk.py`)."""

    def _kernels(self, native: ModuleType) -> tuple[Kernel, Kernel]:
        return native.entropic_forward, native.entropic_backward

    def _numbers(self, at: Softness) -> tuple[float, ...]:
        return self.pattern.n, at.scale, at.tau

    def _relaxed(self, logits: Tensor, at: Softness, key: NoiseKey) -> Tensor:
        noise = self._noise(logits, key)
        return entropic_topk.entropic_top_n(logits, self.pattern.n, at.scale, at.tau, noise)

    def _soft_keep(self, soft: Tensor) -> Tensor:
        return keep_from_planes(soft)

    def _to_logits(self, soft: Tensor, keep_gradient: Tensor, at: Softness) -> Tensor:
        rows, planes, groups = soft.shape
        by_plane = keep_gradient.view(rows, groups, planes).transpose(1, 2)
        return entropic_topk.entropic_gradient(soft, by_plane, at.scale, at.tau)

    def keep(self, logits: Tensor, prior: Tensor, scale: float) -> Tensor:
        """See `Relaxation.keep`; nothing here needs codes, which cost more for most patterns."""
        return keep_from_planes(self._kept(logits))

    def _kept(self, logits: Tensor) -> Tensor:
        if self.native is None:
            return super()._kept(logits)
        rows, planes, groups = logits.shape
        kept = torch.empty((rows, planes * groups), dtype=torch.uint8)
        self.native.keep_top(logits, kept, self.pattern.n)
        return kept.bool().view(rows, groups, planes).transpose(1, 2)
