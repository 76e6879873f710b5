"""Which linear layers of a Hugging Face decoder get a mask, and why the others stay dense."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from maskgen.patterns import GROUP


class SelectionError(ValueError):
    """The model has no layer that a mask could cover, or a pattern matches nothing."""


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """What the user asks for.

    Attributes:
        include: glob patterns on module names; empty means all.
        exclude: glob patterns that win over `include`.
        dense_first: decoder layers at the input that stay dense.
        dense_last: decoder layers at the output that stay dense.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    dense_first: int = 0
    dense_last: int = 0


@dataclass(frozen=True, slots=True)
class Selection:
    """The outcome.

    Attributes:
        layers: module name -> linear, in the order of the model.
        dense: module name -> why this linear inside a decoder layer stays dense.
    """

    layers: dict[str, nn.Linear]
    dense: dict[str, str] = field(default_factory=dict)


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder layers of a causal language model.

    Raises:
        SelectionError: there is none, as in models that are not stacks of decoder layers.
    """
    count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name, module
    raise SelectionError(
        f"{type(model).__name__} has no list of {count} decoder layers; "
        "only stacks of decoder layers can be masked"
    )


def select_layers(model: nn.Module, choice: LayerChoice | None = None) -> Selection:
    """Choose the linears inside the decoder layers whose width is a multiple of 4.

    Embeddings and the output head lie outside the decoder layers and are never chosen.

    Raises:
        SelectionError: nothing is chosen, or an include or exclude pattern matches no linear.
    """
    choice = choice or LayerChoice()
    prefix, stack = decoder_layers(model)
    if choice.dense_first < 0 or choice.dense_last < 0:
        raise SelectionError("the number of dense first or last layers cannot be negative")
    selection = Selection({})
    names: list[str] = []
    for index, layer in enumerate(stack):
        for inner, module in layer.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            name = f"{prefix}.{index}.{inner}"
            names.append(name)
            reason = _why_dense(name, module, index, len(stack), choice)
            if reason is None:
                selection.layers[name] = module
            else:
                selection.dense[name] = reason
    for pattern in (*choice.include, *choice.exclude):
        if not fnmatch.filter(names, pattern):
            raise SelectionError(f"the pattern {pattern!r} matches none of {len(names)} linears")
    if not selection.layers:
        raise SelectionError("no linear layer is left to mask: " + _summary(selection.dense))
    return selection


def _why_dense(
    name: str, linear: nn.Linear, index: int, count: int, choice: LayerChoice
) -> str | None:
    if linear.in_features % GROUP:
        return f"its width {linear.in_features} is not a multiple of {GROUP}"
    if index < choice.dense_first or index >= count - choice.dense_last:
        return "first and last layers were asked to stay dense"
    if choice.include and not any(fnmatch.fnmatchcase(name, p) for p in choice.include):
        return "not included"
    if any(fnmatch.fnmatchcase(name, p) for p in choice.exclude):
        return "excluded"
    return None


def _summary(dense: dict[str, str]) -> str:
    return "; ".join(sorted(set(dense.values()))) or "the decoder layers hold no nn.Linear"
