"""What runs a model, and why the rest does not: by its family, and by its own files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engines.directory.decoder_config import DecoderConfig, decoder_config
from engines.directory.families import FAMILIES, MIXTURES
from engines.errors import EngineDirectoryError
from engines.tensorrt_llm.config import ARCHITECTURES, REFUSED, convertible_decoder
from engines.vllm_plugin.build import LIMITS, TESTED_MODEL_TYPES

Check = Callable[[Mapping[str, tuple[int, ...]]], None]
"""Raises EngineDirectoryError unless there are tensors of these names and shapes, and no others."""

Status = Literal["tested", "not tested", "refused"]


@dataclass(frozen=True, slots=True)
class Support:
    """What one target makes of a model.

    Attributes:
        status: `tested` against transformers, `not tested` (it is built, and nobody has compared
            its answers), or `refused`.
        note: what limits it, or why it is refused; may be empty.
    """

    status: Status
    note: str = ""

    def __str__(self) -> str:
        return f"{self.status}: {self.note}" if self.note else self.status


def family_support(model_type: str) -> dict[str, Support]:
    """Target -> what it makes of a family, by the declarations alone.

    `reference` is left out: it runs what transformers runs.
    """
    mixture = model_type in MIXTURES
    unknown = Support("refused", "a mixture of experts" if mixture else "the family is not known")
    converted = model_type in ARCHITECTURES
    refused = REFUSED.get(model_type)
    return {
        "cpu": Support("tested") if model_type in FAMILIES else unknown,
        "vllm": Support(
            "tested" if model_type in TESTED_MODEL_TYPES else "not tested",
            LIMITS.get(model_type, ""),
        ),
        "tensorrt-llm": Support("tested")
        if converted
        else (Support("refused", refused) if refused else unknown),
    }


def model_support(config: Mapping[str, Any], check: Check) -> dict[str, Support]:
    """Target -> what it makes of a model, before anything is built.

    Args:
        config: its config.json.
        check: compares the tensors that there are with those that a target needs.
    """
    found = family_support(str(config.get("model_type")))
    for target, reads in {"cpu": _read_by_cpu, "tensorrt-llm": convertible_decoder}.items():
        try:
            decoder = reads(dict(config))
            check(decoder.tensor_shapes())
        except EngineDirectoryError as error:
            found[target] = Support("refused", str(error))
        else:
            found[target] = Support(found[target].status, _limits(decoder))
    found["reference"] = Support("not tested", "what transformers loads")
    return found


def _read_by_cpu(config: dict[str, Any]) -> DecoderConfig:
    decoder = decoder_config(config)
    for rope in decoder.ropes:
        rope.frequencies()
    return decoder


def _limits(decoder: DecoderConfig) -> str:
    stated = max(rope.context for rope in decoder.ropes)
    return "" if decoder.context == stated else f"up to {decoder.context} of {stated} positions"
