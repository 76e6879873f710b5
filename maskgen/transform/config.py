"""Settings of the methods that find transforms. Unknown names are refused; docstrings say what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from maskgen.learning.config import Count, NotNegative, Positive, RunConfig
from maskgen.method_lookup import find_method

ChannelKind = Literal["residual", "mlp", "value"]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Channels = Annotated[tuple[ChannelKind, ...], BeforeValidator(_listed)]


class TransformConfig(BaseModel):
    """What every method takes."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )


class OrderConfig(TransformConfig):
    """What methods that look for an order take."""

    score: str = "wanda"
    """The one-shot method whose scores say what is worth keeping."""
    groups: Channels = ("residual", "mlp", "value")
    """Which channels move."""
    rows: Count = 16384
    """Rows of scores that an order is judged by; more are drawn from."""


class AssignmentConfig(OrderConfig):
    """Linear assignment."""

    sweeps: Count = 2
    """Over the slots of a group."""


class LearnedConfig(AssignmentConfig, RunConfig):
    """Orders learned by gradient, from the assigned ones."""

    steps: Count = 100
    """Optimiser steps."""
    sequence_length: Annotated[int, Field(ge=2)] = 512
    """Tokens in a sequence."""
    loss: Literal["amd", "permllm", "block"] = "amd"
    """What is minimised: amd (cross entropy and hidden states), permllm (the last layer's angle to
    the dense one), or block (every decoder layer's error by itself)."""
    block: Count = 64
    """Channels that may change places with each other; the largest divisor of a group up to it."""
    learning_rate: Positive = 8.0
    """Peak learning rate of AdamW."""
    final_learning_rate: NotNegative = 0.8
    """Learning rate that the cosine ends at."""
    adamw_epsilon: Positive | None = None
    """AdamW's epsilon, far above most gradients, so that those costs alone move for which a move
    matters; by default one for each loss, since losses differ in scale."""
    weight_decay: NotNegative = 0.0
    """Decoupled decay of the costs."""
    clip: Positive = 1.0
    """Largest gradient norm, over all costs."""
    margin: NotNegative = 0.3
    """How much cheaper a channel's place in the assigned order is at the start."""
    noise: NotNegative = 0.01
    """Standard deviation of the costs at the start."""
    epsilon: tuple[Positive, Positive] = (1.0, 0.1)
    """Temperature of soft permutations, first and last; falls linearly."""
    tolerance: Positive = 1e-3
    """Of the row sums of soft permutations."""
    iterations: Count = 2000
    """Most of Sinkhorn's; the log says what error is left."""
    gradient_rows: Count = 512
    """Rows of a layer that a step's gradient is taken from, drawn anew every step."""
    assign_every: Count = 10
    """Steps between assignments of the order that is used."""
    held_out_windows: Count = 8
    """Sequences set aside from the text, on which the best step is chosen."""
    held_out_every: Count = 10
    """Steps between evaluations on them."""
    divergence: Positive = 3.0
    """Stop when the smoothed loss is this far above its lowest value."""


class RotationConfig(TransformConfig):
    """Rotations inside value heads."""

    steps: Count = 100
    """Steps of Adam."""
    learning_rate: Positive = 0.01
    """Adam's."""


@dataclass(frozen=True, slots=True)
class TransformMethod:
    """One way to find a transform.

    Attributes:
        config: its settings.
        summary: one line for help and error messages.
    """

    config: type[TransformConfig]
    summary: str


TRANSFORM_METHODS: Mapping[str, TransformMethod] = {
    "zigzag": TransformMethod(OrderConfig, "channels dealt out by their summed scores"),
    "assignment": TransformMethod(AssignmentConfig, "zigzag, then one linear assignment a slot"),
    "learned": TransformMethod(LearnedConfig, "assignment, then learned with a loss of the model"),
    "rotation": TransformMethod(RotationConfig, "value channels rotated to concentrate scores"),
}


def transform_config(method: str, settings: Mapping[str, Any]) -> TransformConfig:
    """The method's settings object.

    Raises:
        UnknownMethodError: there is no such method.
        pydantic.ValidationError: unknown or impossible settings.
    """
    return find_method(TRANSFORM_METHODS, method).config.model_validate(settings)
