"""The sequential pass that one-shot methods share.

Decoder layers are pruned one after the other, and each sees the activations that the already
pruned layers before it produce, as SparseGPT and Wanda do.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from maskgen.experts import LEAST_ROWS, RareExperts, experts_in, whole
from maskgen.format.placements import Codes, keep_from_codes
from maskgen.methods.base import PrunedLayer, PruneMethod, Statistic
from maskgen.selection import Selection, SelectionError, decoder_layers
from maskgen.texts.windows import Windows

LayerProgress = Callable[[int, int, str], None]
"""Called with (layers done, layers in all, name of the layer)."""


@dataclass(frozen=True, slots=True)
class PruneOutcome:
    """What the pass leaves.

    Attributes:
        codes: layer name -> (N, K/M) codes of the method's pattern.
        weights: layer name -> changed (N, K) fp32 weight, for methods that change weights.
        rare: experts that too few tokens chose.
    """

    codes: dict[str, Codes]
    weights: dict[str, Tensor]
    rare: RareExperts = field(default_factory=RareExperts)


@torch.no_grad()
def prune_by_weight(
    method: PruneMethod[Any], selection: Selection, progress: LayerProgress
) -> PruneOutcome:
    """Prune every selected layer with a method that needs no text."""
    codes = {}
    for index, (name, linear) in enumerate(selection.layers.items()):
        statistic = method.statistic(linear.in_features, linear.weight.device)
        codes[name] = _prune(method, name, linear, statistic).codes
        progress(index + 1, len(selection.layers), name)
    return PruneOutcome(codes, {})


@torch.no_grad()
def prune_sequentially(
    model: nn.Module,
    method: PruneMethod[Any],
    selection: Selection,
    windows: Windows,
    progress: LayerProgress,
    least_rows: int = LEAST_ROWS,
) -> PruneOutcome:
    """Prune the selected layers in order; the model is left with the pruned weights.

    Args:
        model: a causal language model of `transformers` in evaluation mode.
        windows: (windows, length) token ids.
        least_rows: of a mixture, tokens below which an expert is rare.

    Raises:
        SelectionError: the decoder layers take arguments that depend on the text, which this pass
            could not reproduce.
        ValueError: a method cannot decide a layer; the message names it.
    """
    prefix, stack = decoder_layers(model)
    outcome = PruneOutcome({}, {}, RareExperts(least_rows))
    arguments, hidden = embed(model, stack, windows)
    for index, layer in enumerate(stack):
        place = f"{prefix}.{index}"
        inner = _inside(selection.layers, place)
        if inner:
            pass_ = LayerPass(place, layer, arguments[index], hidden)
            statistics = pass_.statistics(inner, method.statistic, outcome.rare)
            for name, pruned in _prune_linears(method, inner, statistics).items():
                outcome.codes[name] = pruned.codes
                if pruned.weight is not None:
                    outcome.weights[name] = pruned.weight
        for window, states in enumerate(hidden):
            hidden[window] = run_layer(layer, states, arguments[index])
        progress(index + 1, len(stack), f"{prefix}.{index}")
    return outcome


@torch.no_grad()
def dense_statistics(
    model: nn.Module,
    linears: Mapping[str, nn.Linear],
    make: Callable[[int, torch.device], Statistic],
    windows: Windows,
    progress: LayerProgress,
    rare: RareExperts | None = None,
) -> Iterator[dict[str, Statistic]]:
    """The statistics of the dense model's linears, one decoder layer after the other.

    Args:
        model: as `prune_sequentially`; left as it is.
        linears: by name; which inputs are observed.
        make: a fresh statistic for an input width and a device.
        windows: (windows, length) token ids.
        rare: is told the experts that too few tokens chose.

    Raises:
        SelectionError: as `prune_sequentially`.
    """
    prefix, stack = decoder_layers(model)
    arguments, hidden = embed(model, stack, windows)
    rare = RareExperts() if rare is None else rare
    for index, layer in enumerate(stack):
        place = f"{prefix}.{index}"
        # Rare experts need the inputs a second time; without experts the outputs take their place.
        outputs = list(hidden) if experts_in(layer) else hidden
        pass_ = LayerPass(place, layer, arguments[index], hidden, outputs)
        statistics = pass_.statistics(_inside(linears, place), make, rare)
        hidden = outputs
        progress(index + 1, len(stack), place)
        yield statistics


@dataclass(frozen=True, slots=True)
class LayerPass:
    """A decoder layer over all windows.

    Attributes:
        place: the layer's name.
        layer: the layer.
        arguments: beside the hidden states.
        hidden: (windows) inputs.
        outputs: where what the layer makes of them goes; None if nobody needs it.
    """

    place: str
    layer: nn.Module
    arguments: dict[str, Any]
    hidden: list[Tensor]
    outputs: list[Tensor] | None = None

    def statistics(
        self,
        linears: Mapping[str, nn.Linear],
        make: Callable[[int, torch.device], Statistic],
        rare: RareExperts,
    ) -> dict[str, Statistic]:
        """Of what each linear reads: in an expert, of the tokens that chose it.

        Those of a rare expert are of all tokens of the layer instead, which takes a second run.

        Raises:
            SelectionError: a linear saw nothing.
        """
        mixtures = experts_in(self.layer)
        for mixture in mixtures.values():
            mixture.rows = [0] * len(mixture)
        with observe(linears, make) as statistics:
            for window, states in enumerate(self.hidden):
                output = run_layer(self.layer, states, self.arguments)
                if self.outputs is not None:
                    self.outputs[window] = output
        for name, mixture in mixtures.items():
            again = rare.find(f"{self.place}.{name}", mixture, linears)
            if not again:
                continue
            theirs = {n: linears[n] for names in again.values() for n in names}
            with whole(mixture, again), observe(theirs, make) as anew:
                for states in self.hidden:
                    run_layer(self.layer, states, self.arguments)
            statistics |= anew
        for name in linears:
            if name not in statistics:
                raise SelectionError(f"{name} saw no input on the calibration text; exclude it")
        return statistics


def _inside(linears: Mapping[str, nn.Linear], layer: str) -> dict[str, nn.Linear]:
    return {name: linear for name, linear in linears.items() if name.startswith(f"{layer}.")}


def _prune_linears(
    method: PruneMethod[Any],
    linears: Mapping[str, nn.Linear],
    statistics: Mapping[str, Statistic],
) -> dict[str, PrunedLayer]:
    result = {}
    for name, linear in linears.items():
        result[name] = pruned = _prune(method, name, linear, statistics[name])
        keep = torch.from_numpy(keep_from_codes(pruned.codes, method.pattern)).to(
            linear.weight.device
        )
        if pruned.weight is not None:
            linear.weight.copy_(pruned.weight)
        linear.weight.masked_fill_(~keep, 0)
    return result


def _prune(
    method: PruneMethod[Any], name: str, linear: nn.Linear, statistic: Statistic
) -> PrunedLayer:
    try:
        return method.prune_layer(linear.weight.detach().float(), statistic)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


@contextmanager
def observe(
    linears: Mapping[str, nn.Linear], make: Callable[[int, torch.device], Statistic]
) -> Iterator[dict[str, Statistic]]:
    """Gather each linear's statistic; linears that read the same tensor share one."""
    statistics: dict[str, Statistic] = {}
    last: dict[str, Tensor] = {}
    handles = []

    def hook_for(name: str, width: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            source = inputs[0]
            # Query, key and value (gate and up) are given the same tensor object: the first of
            # them adds it for all. Holding on to it keeps the identity meaningful.
            sharer = next((other for other, seen in last.items() if seen is source), None)
            last[name] = source
            if sharer is not None and statistics.get(name) in (None, statistics[sharer]):
                statistics[name] = statistics[sharer]
                return
            if name not in statistics:
                statistics[name] = make(width, source.device)
            statistics[name].add(source.detach().reshape(-1, width).float())

        return hook

    for name, linear in linears.items():
        handles.append(linear.register_forward_pre_hook(hook_for(name, linear.in_features)))
    try:
        yield statistics
    finally:
        for handle in handles:
            handle.remove()


def run_layer(layer: nn.Module, states: Tensor, arguments: dict[str, Any]) -> Tensor:
    """The hidden states that a decoder layer makes of others."""
    output = layer(states, **arguments)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


class _FirstLayerReached(Exception):  # noqa: N818 - it stops a forward pass, nothing went wrong
    pass


def embed(
    model: nn.Module, stack: nn.ModuleList, windows: Windows
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Each layer's keyword arguments, and the first layer's input for every window.

    The arguments (positions, attention masks) depend on the length of a window alone. That is
    checked on two windows, so that an architecture that passes token-dependent ones is refused
    instead of being calibrated wrongly.
    """
    arguments = _layer_arguments(model, stack, windows[:1])
    if not all(
        _same(one, other)
        for one, other in zip(arguments, _layer_arguments(model, stack, windows[-1:]), strict=True)
    ):
        raise SelectionError(
            f"{type(model).__name__} gives its decoder layers inputs that depend on the text; "
            "the sequential pass does not support that"
        )
    hidden: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden.append(args[0] if args else kwargs["hidden_states"])
        raise _FirstLayerReached

    handle = stack[0].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        for window in windows:
            try:
                _forward(model, window[None])
            except _FirstLayerReached:
                continue
    finally:
        handle.remove()
    return arguments, hidden


def _layer_arguments(
    model: nn.Module, stack: nn.ModuleList, window: Windows
) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    handles = []
    for index, layer in enumerate(stack):

        def record(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index
        ) -> None:
            names = list(inspect.signature(module.forward).parameters)
            bound = {**dict(zip(names, args, strict=False)), **kwargs}
            bound.pop(names[0])
            found[index] = bound

        handles.append(layer.register_forward_pre_hook(record, with_kwargs=True))
    try:
        _forward(model, window)
    finally:
        for handle in handles:
            handle.remove()
    return [found[index] for index in range(len(stack))]


def _forward(model: nn.Module, window: Windows) -> None:
    device = next(model.parameters()).device
    # The output head would only cost time: nobody looks at the logits.
    backbone = getattr(model, "base_model", model)
    backbone(torch.from_numpy(window).long().to(device), use_cache=False)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
