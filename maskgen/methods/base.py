"""What a one-shot method is: a statistic of a layer's inputs, and a rule that turns it into codes.

The pass over the model (`maskgen.calibration`) is the same for all of them, so a method is only
its mathematics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.placements import Codes, project

StatisticT = TypeVar("StatisticT", bound="Statistic")


class Statistic(ABC):
    """Something accumulated over the inputs that one linear layer sees."""

    @abstractmethod
    def add(self, inputs: Tensor) -> None:
        """Take in more inputs: (tokens, K) in fp32."""


class NoStatistic(Statistic):
    """For methods that look at weights alone."""

    def add(self, inputs: Tensor) -> None:
        raise TypeError("this method takes no calibration inputs")


class SquaredNorms(Statistic):
    """Sum of squares of every input feature.

    Attributes:
        sum: (K,) fp64.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.sum = torch.zeros(width, dtype=torch.float64, device=device)

    def add(self, inputs: Tensor) -> None:
        self.sum += inputs.square().sum(dim=0)

    @property
    def norms(self) -> Tensor:
        """(K,) fp32: the Euclidean norm of every input feature over all tokens."""
        return self.sum.sqrt().float()


@dataclass(frozen=True, slots=True)
class PrunedLayer:
    """What a method decides for one layer.

    Attributes:
        codes: (N, K/M) placement codes.
        weight: (N, K) fp32, the changed weight with zeros where the mask drops; None when the
            method only selects weights.
    """

    codes: Codes
    weight: Tensor | None = None


class PruneMethod(ABC, Generic[StatisticT]):
    """A one-shot method; `maskgen.registry` names its subclasses.

    Attributes:
        pattern: how many weights of a group it keeps.
        uses_calibration: whether it needs text.
        updates_weights: whether it changes the weights it keeps, and so makes a new checkpoint.
    """

    uses_calibration: ClassVar[bool] = True
    updates_weights: ClassVar[bool] = False

    def __init__(self, pattern: Pattern = TWO_FOUR) -> None:
        self.pattern = pattern

    @abstractmethod
    def statistic(self, width: int, device: torch.device) -> StatisticT:
        """A fresh statistic for a layer with `width` input features."""

    def scores(self, weight: Tensor, statistic: StatisticT) -> Tensor:
        """How much each weight matters before any was dropped: (N, K) fp32, not negative.

        What transforms look at: they put weights side by side so that what is dropped matters
        least.

        Args:
            weight: (N, K) fp32; not to be modified.
            statistic: what this method gathered on the layer's inputs.

        Raises:
            ValueError: the method decides on more than scores, or the statistic allows none.
        """
        raise ValueError(
            f"{type(self).__name__} decides on more than a score for every weight; use magnitude,"
            " wanda, ria or sparsegpt as the score"
        )

    def prune_layer(self, weight: Tensor, statistic: StatisticT) -> PrunedLayer:
        """Decide one layer; by the highest scores, unless a method says otherwise.

        Args:
            weight: (N, K) fp32; not to be modified.
            statistic: what this method gathered on the layer's inputs.

        Raises:
            ValueError: the statistic does not allow a decision.
        """
        scores = self.scores(weight, statistic)
        return PrunedLayer(project(scores.cpu().numpy(), self.pattern))
