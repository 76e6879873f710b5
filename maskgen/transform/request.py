"""What finding a transform needs besides model and text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.selection import LayerChoice
from maskgen.transform.config import TransformConfig


@dataclass(frozen=True, slots=True)
class TransformRequest:
    """What finding a transform needs besides model and text.

    Attributes:
        method: a name of `maskgen.transform.config.TRANSFORM_METHODS`.
        config: an instance of the method's settings.
        windows: calibration windows drawn from the text.
        length: tokens in a window.
        pattern: of the masks that orders are made for.
        seed: which windows are drawn, and all else that is random.
        dtype: of weights and activations (`torch_model.resolve_dtype`).
        layers: which layers will have masks.
        folder: checkpoints and log of the method `learned`.
        resume: go on from the folder's newest checkpoint.
        device: torch device; by default CUDA if there is one.
    """

    method: str
    config: TransformConfig
    windows: int = 64
    length: int = 1024
    seed: int = 0
    pattern: Pattern = TWO_FOUR
    dtype: str = "auto"
    layers: LayerChoice = field(default_factory=LayerChoice)
    folder: Path | None = None
    resume: bool = False
    device: str | None = None
