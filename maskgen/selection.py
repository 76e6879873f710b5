"""Which linear layers of a Hugging Face decoder get a mask, and why other weights stay dense."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from maskgen.format.coverage import DenseWeight, grouped, together
from maskgen.format.experts import is_router
from maskgen.format.pattern import TWO_FOUR, Pattern


class SelectionError(ValueError):
    """The model has no layer that a mask could cover, or a glob matches nothing."""


@dataclass(frozen=True, slots=True)
class LayerChoice:
    """What the user asks for.

    Attributes:
        include: globs on module names; empty means all.
        exclude: globs that win over `include`.
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
        dense: every other matrix inside the decoder layers: linears by module name, parameters
            of other modules (routers, fused experts, Conv1D) by their own name without `.weight`.
    """

    layers: dict[str, nn.Linear]
    dense: dict[str, DenseWeight] = field(default_factory=dict)

    @property
    def decoder_weights(self) -> int:
        """Weights of all matrices inside the decoder layers, masked or not."""
        masked = sum(linear.weight.numel() for linear in self.layers.values())
        return masked + sum(weight.weights for weight in self.dense.values())


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


def select_layers(
    model: nn.Module, choice: LayerChoice | None = None, pattern: Pattern = TWO_FOUR
) -> Selection:
    """Choose the linears inside the decoder layers whose width is a multiple of the pattern's M.

    Embeddings and the output head lie outside the decoder layers and are never chosen. Matrices
    that are no `nn.Linear` stay dense: routers, experts that the files hold fused, and the Conv1D
    of GPT-2, which stores its weight the other way round.

    Raises:
        SelectionError: nothing is chosen, or an include or exclude glob matches no weight.
    """
    choice = choice or LayerChoice()
    prefix, stack = decoder_layers(model)
    if choice.dense_first < 0 or choice.dense_last < 0:
        raise SelectionError("the number of dense first or last layers cannot be negative")
    selection = Selection({})
    names: list[str] = []
    for index, layer in enumerate(stack):
        for inner, module in layer.named_modules(prefix=f"{prefix}.{index}"):
            for name, weight, reason in _matrices(
                inner, module, index, len(stack), choice, pattern
            ):
                names.append(name)
                if reason is None:
                    selection.layers[name] = module
                else:
                    selection.dense[name] = DenseWeight(reason, weight.numel())
    for glob in (*choice.include, *choice.exclude):
        if not fnmatch.filter(names, glob):
            raise SelectionError(
                f"the glob {glob!r} matches none of the decoder's {len(names)} weights"
            )
    if not selection.layers:
        raise SelectionError("no linear layer is left to mask: " + _summary(selection.dense))
    return selection


def _matrices(
    name: str, module: nn.Module, index: int, count: int, choice: LayerChoice, pattern: Pattern
) -> Iterator[tuple[str, Tensor, str | None]]:
    """(name, weight, why it stays dense or None) of the module's own matrices."""
    if isinstance(module, nn.Linear):
        yield name, module.weight, _why_dense(name, module, index, count, choice, pattern)
        return
    for own, parameter in module.named_parameters(prefix=name, recurse=False):
        if parameter.ndim > 1:
            shape = "x".join(map(str, parameter.shape))
            yield (
                own.removesuffix(".weight"),
                parameter,
                f"a {shape} parameter of {type(module).__name__}, which is no nn.Linear",
            )


def _why_dense(
    name: str, linear: nn.Linear, index: int, count: int, choice: LayerChoice, pattern: Pattern
) -> str | None:
    if is_router(f"{name}.weight"):
        return "it weighs experts"
    if linear.in_features % pattern.m:
        return f"its width {linear.in_features} is not a multiple of {pattern.m}"
    if index < choice.dense_first or index >= count - choice.dense_last:
        return "first and last layers were asked to stay dense"
    if choice.include and not any(fnmatch.fnmatchcase(name, p) for p in choice.include):
        return "not included"
    if any(fnmatch.fnmatchcase(name, p) for p in choice.exclude):
        return "excluded"
    return None


def _summary(dense: dict[str, DenseWeight]) -> str:
    kinds = [f"{together(names)} ({reason})" for names, reason in grouped(dense)]
    return "; ".join(kinds) or "the decoder layers hold no matrices"
