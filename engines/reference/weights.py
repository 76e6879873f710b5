"""Where transformers keeps the matrix that a mask names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch

from engines.errors import EngineDirectoryError
from maskgen.format.experts import EXPERTS

_EXPERT = re.compile(r"(model\.layers\.\d+)\.(\w+)\.experts\.(\d+)\.(\w+)")


def weight_of(model: torch.nn.Module, layer: str) -> torch.Tensor | None:
    """(outputs, inputs) of a linear, or of an expert, a view of a fused parameter; None: neither.

    Args:
        model: of `load_transformers_model`.
        layer: name in the model's files.
    """
    module = _module(model, layer)
    if isinstance(module, torch.nn.Linear):
        return module.weight.data
    config: Any = model.config
    names, place = EXPERTS.get(config.model_type), _EXPERT.fullmatch(layer)
    if names is None or place is None or place[2] != names.block:
        return None
    experts: Any = model.get_submodule(f"{place[1]}.mlp.experts")
    number = int(place[3])
    if number >= len(experts.down_proj):
        return None
    gate, up = experts.gate_up_proj.data[number].chunk(2)
    parts = {names.gate: gate, names.up: up, names.down: experts.down_proj.data[number]}
    return parts.get(place[4])


def weights_of(model: torch.nn.Module, layers: Iterable[str]) -> dict[str, torch.Tensor]:
    """Layer -> its weight in the model.

    Raises:
        EngineDirectoryError: the model has no such layer.
    """
    found = {}
    for layer in layers:
        weight = weight_of(model, layer)
        if weight is None:
            raise EngineDirectoryError(f"the model has no layer {layer}, which its masks list")
        found[layer] = weight
    return found


def linears_of(model: torch.nn.Module, layers: Iterable[str]) -> dict[str, torch.nn.Linear]:
    """Layer -> its module.

    Raises:
        EngineDirectoryError: it is an expert, which has none of its own, or the model has no such
            layer.
    """
    found = {}
    for layer in layers:
        module = _module(model, layer)
        if not isinstance(module, torch.nn.Linear):
            raise EngineDirectoryError(
                f"the masks list {layer}, which transformers keeps as no nn.Linear: sparse kernels"
                " of a GPU cannot take its place; choose the engine option device=cpu"
            )
        found[layer] = module
    return found


def _module(model: torch.nn.Module, name: str) -> torch.nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
