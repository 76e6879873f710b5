"""What the loop drives: learners of masks, weights, orders or gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

from torch import Tensor

from maskgen.format.placements import Codes


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step measured.

    Attributes:
        loss: language-model loss on this step's text, nats a token, over all ranks.
        extra: numbers of the method's own, for the log.
    """

    loss: float
    extra: dict[str, float]


@dataclass(frozen=True, slots=True)
class Movement:
    """How far the masks are from the prior, and from a decision.

    Attributes:
        changed: share of groups whose placement is not the prior's.
        sharpness: mean probability, without noise, of what would be decided now.
    """

    changed: float
    sharpness: float

    def numbers(self) -> dict[str, float]:
        """For the log."""
        return {"changed": self.changed, "sharpness": self.sharpness}


class Learner(Protocol):
    """What the loop drives: `maskgen.learning.loop`."""

    def step(self, step: int) -> StepReport:
        """Do step number `step`, counted from 0."""

    def measure(self) -> dict[str, float]:
        """Numbers for the log that are too costly for every step (walks over all parameters)."""

    def learned(self) -> dict[str, Tensor]:
        """Everything that is learned, for a checkpoint."""

    def optimiser(self) -> dict[str, Tensor]:
        """This rank's optimiser state, for a checkpoint."""

    def restore(self, learned: Mapping[str, Tensor], optimiser: Mapping[str, Tensor]) -> None:
        """Take back what `learned` and `optimiser` gave."""

    def evaluate(self, windows: Sequence[Tensor]) -> float:
        """Mean loss of what is learned so far over windows of token ids, nats a token."""


class MaskLearner(Learner, Protocol):
    """A learner of masks."""

    @property
    def native(self) -> ModuleType | None:
        """The kernels that compute masks; None for torch's functions."""

    def movement(self) -> Movement:
        """How far the masks have moved; what `measure` reports."""

    def codes(self) -> dict[str, Codes]:
        """The hard masks that the logits stand for now, by layer name."""

    def state_bytes(self) -> dict[str, float]:
        """Bytes of training state per weight: each part, and `total`."""
