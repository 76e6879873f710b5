"""A relaxation turns mask logits into a differentiable mask: the three that methods learn with.

All take the same two numbers, `scale` and `tau`, so the layer and the trainer need not know which
one they run. The gradient is written by hand because it recomputes the noise from its key instead
of keeping any of the planes for the backward pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import ModuleType

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
            of micro-batches in a step.
    """

    scale: float
    tau: float
    regularisation: float = 0.0


class Relaxation(ABC):
    """Mask logits (rows, planes, groups) <-> masked weight (rows, M * groups).

    Attributes:
        native: kernels for this pattern; None for torch's functions.
        pattern: of the masks.
        planes: logits of a group.
    """

    def __init__(self, native: ModuleType | None, pattern: Pattern = TWO_FOUR) -> None:
        self.native = native
        self.pattern = pattern
        self.planes = self._planes()

    @abstractmethod
    def _planes(self) -> int: ...

    @abstractmethod
    def masked_weight(self, weight: Tensor, logits: Tensor, at: Softness, key: NoiseKey) -> Tensor:
        """weight * soft mask, in the weight's type."""

    @abstractmethod
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

    def keep(self, logits: Tensor, prior: Tensor, scale: float) -> Tensor:
        """(rows, M * groups) bool: what `decide` decides on."""
        return keep_tensor(self.decide(logits, prior, scale)[0], self.pattern)

    @abstractmethod
    def _codes(self, logits: Tensor) -> Tensor: ...

    @abstractmethod
    def _sharpness(self, logits: Tensor, scale: float) -> float: ...


def _keep_gradient(
    weight: Tensor, keep: Tensor, masked_gradient: Tensor, regularisation: float
) -> Tensor:
    """dL / d(keep), the regularisation -lambda * sum((w * keep)^2) included."""
    w = weight.float()
    return w * (masked_gradient.float() - 2.0 * regularisation * w * keep)


class GumbelPlacements(Relaxation):
    """MaskLLM: Gumbel-softmax over a logit per placement; `scale` is kappa."""

    def _planes(self) -> int:
        return self.pattern.placements

    def masked_weight(self, weight: Tensor, logits: Tensor, at: Softness, key: NoiseKey) -> Tensor:
        if self.native is not None:
            masked = torch.empty_like(weight)
            self.native.gumbel_forward(
                weight, logits, masked, at.scale, at.tau, key.seed, key.step, key.micro_batch,
                key.layer,
            )  # fmt: skip
            return masked
        keep = gumbel.keep_from_placements(self._probabilities(logits, at, key), self.pattern)
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
        if self.native is not None:
            self.native.gumbel_backward(
                weight, logits, masked_gradient, out, at.scale, at.tau, at.regularisation,
                key.seed, key.step, key.micro_batch, key.layer,
            )  # fmt: skip
            return
        probabilities = self._probabilities(logits, at, key)
        keep = gumbel.keep_from_placements(probabilities, self.pattern)
        gradient = _keep_gradient(weight, keep, masked_gradient, at.regularisation)
        out += gumbel.placement_gradient(probabilities, gradient, at.scale / at.tau, self.pattern)

    def _probabilities(self, logits: Tensor, at: Softness, key: NoiseKey) -> Tensor:
        rows, _, groups = logits.shape
        noise = gumbels(rows, self.planes, groups, key, logits.device)
        return gumbel.placement_probabilities(logits, at.scale, at.tau, noise)

    def _codes(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=1)

    def _sharpness(self, logits: Tensor, scale: float) -> float:
        return float(torch.softmax(scale * logits, dim=1).amax(dim=1).sum())


class TopN(Relaxation):
    """RoI: Gumbel top-n of a logit per weight; `scale` is lambda."""

    def _planes(self) -> int:
        return self.pattern.m

    def _noise(self, logits: Tensor, key: NoiseKey) -> Tensor:
        rows, _, groups = logits.shape
        return gumbels(rows, self.planes, groups, key, logits.device)

    def _kept(self, logits: Tensor) -> Tensor:
        return top_n(logits, self.pattern.n)

    def _codes(self, logits: Tensor) -> Tensor:
        return codes_from_planes(self._kept(logits), self.pattern)

    def _sharpness(self, logits: Tensor, scale: float) -> float:
        return float((torch.softmax(logits / scale, dim=1) * self._kept(logits)).sum())


class SequentialTopN(TopN):
    """RoI's own: one choice after the other."""

    def masked_weight(self, weight: Tensor, logits: Tensor, at: Softness, key: NoiseKey) -> Tensor:
        if self.native is not None:
            masked = torch.empty_like(weight)
            self.native.topk_forward(
                weight, logits, masked, at.scale, at.tau, key.seed, key.step, key.micro_batch,
                key.layer,
            )  # fmt: skip
            return masked
        keep = relaxed_topk.keep_from_choices(self._choices(logits, at, key))
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
        if self.native is not None:
            self.native.topk_backward(
                weight, logits, masked_gradient, out, at.scale, at.tau, at.regularisation,
                key.seed, key.step, key.micro_batch, key.layer,
            )  # fmt: skip
            return
        choices = self._choices(logits, at, key)
        keep = relaxed_topk.keep_from_choices(choices)
        gradient = _keep_gradient(weight, keep, masked_gradient, at.regularisation)
        out += relaxed_topk.top_n_gradient(choices, gradient, at.scale, at.tau)

    def _choices(self, logits: Tensor, at: Softness, key: NoiseKey) -> list[relaxed_topk.Choice]:
        noise = self._noise(logits, key)
        return relaxed_topk.relax_top_n(logits, self.pattern.n, at.scale, at.tau, noise)


class EntropicTopN(TopN):
    """All choices at once, by entropic optimal transport (`entropic_topk.py`)."""

    def masked_weight(self, weight: Tensor, logits: Tensor, at: Softness, key: NoiseKey) -> Tensor:
        if self.native is not None:
            masked = torch.empty_like(weight)
            self.native.entropic_forward(
                weight, logits, masked, self.pattern.n, at.scale, at.tau, key.seed, key.step,
                key.micro_batch, key.layer,
            )  # fmt: skip
            return masked
        keep = keep_from_planes(self._soft(logits, at, key))
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
        if self.native is not None:
            self.native.entropic_backward(
                weight, logits, masked_gradient, out, self.pattern.n, at.scale, at.tau,
                at.regularisation, key.seed, key.step, key.micro_batch, key.layer,
            )  # fmt: skip
            return
        keep = self._soft(logits, at, key)
        gradient = _keep_gradient(
            weight, keep_from_planes(keep), masked_gradient, at.regularisation
        )
        rows, planes, groups = keep.shape
        gradient = gradient.view(rows, groups, planes).transpose(1, 2)
        out += entropic_topk.entropic_gradient(keep, gradient, at.scale, at.tau)

    def keep(self, logits: Tensor, prior: Tensor, scale: float) -> Tensor:
        """See `Relaxation.keep`; nothing here needs codes, which cost more for most patterns."""
        return keep_from_planes(self._kept(logits))

    def _soft(self, logits: Tensor, at: Softness, key: NoiseKey) -> Tensor:
        noise = self._noise(logits, key)
        return entropic_topk.entropic_top_n(logits, self.pattern.n, at.scale, at.tau, noise)

    def _kept(self, logits: Tensor) -> Tensor:
        if self.native is None:
            return super()._kept(logits)
        rows, planes, groups = logits.shape
        kept = torch.empty((rows, planes * groups), dtype=torch.uint8)
        self.native.keep_top(logits, kept, self.pattern.n)
        return kept.bool().view(rows, groups, planes).transpose(1, 2)
