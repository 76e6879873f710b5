"""Options that several modes of `twofour bench masks` have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_Option = typer.Option

Model = Annotated[str, _Option(help="Alias, directory, GGUF file or Hugging Face id.")]
Learn = Annotated[
    list[str] | None, _Option(help="Text to learn and calibrate on (repeat). [wikipedia:train]")
]
Wikitext2 = Annotated[str, _Option(help="First evaluation text.")]
C4 = Annotated[str, _Option(help="Second evaluation text.")]
MethodSettings = Annotated[
    list[str] | None,
    _Option(
        "--set",
        help="METHOD.NAME=VALUE in place of the benchmark's setting, such as maskllm.steps=200"
        " (repeat).",
    ),
]
Dtype = Annotated[str, _Option(help="bf16, fp32, or auto: what is fast here.")]
FirstWindows = Annotated[int | None, _Option(help="Evaluate on the first N windows only.", min=1)]
CalibrationWindows = Annotated[int, _Option(help="For one-shot methods.", min=1)]
CalibrationLength = Annotated[int, _Option(help="Tokens in one of them.", min=2)]
Work = Annotated[Path, _Option(help="Unfinished runs and masks.")]
