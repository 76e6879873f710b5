"""Settings of the methods that find transforms. Unknown names are refused; docstrings say what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from maskgen.learning.config import Count, Positive

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
    "rotation": TransformMethod(RotationConfig, "value channels rotated to concentrate scores"),
}


def transform_config(method: str, settings: Mapping[str, Any]) -> TransformConfig:
    """The method's settings object.

    Raises:
        ValueError: there is no such method; or (pydantic.ValidationError) unknown or impossible
            settings.
    """
    if method not in TRANSFORM_METHODS:
        raise ValueError(f"there is no method {method!r}; methods: {', '.join(TRANSFORM_METHODS)}")
    return TRANSFORM_METHODS[method].config.model_validate(settings)
