"""MaskLLM's run (arXiv 2409.17481): how its logits begin and how its masks harden.

kappa rises and tau falls linearly over the run, lambda falls linearly to 0 (its section 3.2 and
Table 7).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from maskgen.learning.gradient_learner import Schedule
from maskgen.learning.noise import layer_number
from maskgen.learning.prior import add_placement_prior, gaussian
from maskgen.learning.relaxation import GumbelPlacements, Softness
from maskgen.learning.schedules import linear


@dataclass(frozen=True, slots=True)
class Hardening:
    """Softness from the first step to the last.

    Attributes:
        kappa: scale of the logits, first and last.
        tau: temperature, first and last.
        regularisation: lambda of the sparse-weight regularisation, at the first step.
        steps: of the run.
    """

    kappa: tuple[float, float]
    tau: tuple[float, float]
    regularisation: float
    steps: int

    def at(self, step: int) -> Softness:
        """Softness of a step, counted from 0."""
        progress = step / self.steps
        return Softness(
            linear(*self.kappa, progress),
            linear(*self.tau, progress),
            self.regularisation * (1.0 - progress),
        )


@dataclass(frozen=True, slots=True)
class LogitStart:
    """Where logits begin.

    Attributes:
        sigma: their standard deviation.
        alpha: strength of the prior, in standard deviations; 0 for none.
        seed: of their noise.
    """

    sigma: float
    alpha: float
    seed: int


def placement_schedule(
    relaxation: GumbelPlacements, hardening: Hardening, start: LogitStart
) -> Schedule:
    """The schedule of a run with such a relaxation."""

    def initial_logits(name: str, codes: Tensor) -> Tensor:
        rows, groups = codes.shape
        shape = (rows, relaxation.planes, groups)
        logits = gaussian(shape, start.sigma, start.seed, layer_number(name))
        add_placement_prior(logits, codes.cpu(), start.alpha, relaxation.pattern)
        return logits

    return Schedule(hardening.at, initial_logits)
