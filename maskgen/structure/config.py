"""Settings of the methods that choose units. Unknown names are refused; docstrings say what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from maskgen.learning.config import Count, NotNegative, Positive, RunConfig
from maskgen.method_lookup import find_method

Share = Annotated[float, Field(ge=0, le=1)]


class ScoreConfig(BaseModel):
    """What methods that score units once take: nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GateConfig(RunConfig):
    """What methods take that learn a gate for every unit."""

    steps: Count = 200
    """Optimiser steps."""
    sequence_length: Annotated[int, Field(ge=2)] = 512
    """Tokens in a sequence."""
    start: Literal["flap", "magnitude"] = "flap"
    """The one-shot method whose order gates start from."""
    gate_rate: Positive = 0.005
    """Peak of how far a step moves a layer's gates, as a root mean square; it falls to a tenth."""
    calibration: Share = 0.3
    """Share of the steps at the end in which units are chosen, and what is left is tuned alone."""
    distillation: Share = 1.0
    """Share of KL(whole model || gated model) in the loss; the rest is cross entropy."""
    hidden: NotNegative = 1.0
    """Weight of the hidden states' squared error, relative to their size, a mean over layers."""
    clip: Positive = 1.0
    """Largest gradient norm of low-rank differences."""
    held_out_windows: Count = 8
    """Sequences set aside from the text, on which progress is reported."""
    held_out_every: Count = 25
    """Steps between evaluations on them."""
    divergence: Positive = 5.0
    """Stop when the smoothed loss is this far above its lowest value."""


class GraspConfig(GateConfig):
    """Projected gates."""


class MaskPruneConfig(GateConfig):
    """Minimax over gates and the width."""

    spread: Share = 0.5
    """How much less than the best unit's the worst one's gate counts when they are compared."""
    learn_heads: bool = False
    """Learn how many key-value heads stay, too. In runs of some hundred steps heads go too fast:
    what losing one costs shows only once it is gone."""
    rank: Annotated[int, Field(ge=0)] = 8
    """Of the low-rank difference that every linear learns meanwhile; 0 for none."""
    learning_rate: Positive = 1e-3
    """Peak learning rate of those differences; it falls to a tenth."""
    width_rate: Positive = 0.02
    """Step of the removed shares, of which gradients are cut to 1."""
    vanish_rate: Positive = 5.0
    """Step of the multipliers that make removed units' gates vanish."""
    budget_rate: Positive = 20.0
    """Step of the multiplier of the budget; halved whenever the budget is met within 0.5 %."""


@dataclass(frozen=True, slots=True)
class StructureMethod:
    """One way to choose units.

    Attributes:
        config: its settings.
        summary: one line for help and error messages.
        uses_text: whether it needs text.
    """

    config: type[BaseModel]
    summary: str
    uses_text: bool = True


STRUCTURE_METHODS: Mapping[str, StructureMethod] = {
    "magnitude": StructureMethod(ScoreConfig, "the units with the largest weights", False),
    "flap": StructureMethod(ScoreConfig, "the units whose inputs vary most, by weight"),
    "grasp": StructureMethod(GraspConfig, "gates learned under a hard mask of the final width"),
    "maskprune": StructureMethod(MaskPruneConfig, "gates and one width for all layers, minimax"),
}


def structure_config(method: str, settings: Mapping[str, Any]) -> BaseModel:
    """The method's settings object.

    Raises:
        UnknownMethodError: there is no such method.
        pydantic.ValidationError: unknown or impossible settings.
    """
    return find_method(STRUCTURE_METHODS, method).config.model_validate(settings)
