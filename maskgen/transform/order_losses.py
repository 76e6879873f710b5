"""What learned orders minimise: the masked model's loss on text, or its distance to the dense."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.learning.loss import next_token_loss
from maskgen.selection import decoder_layers
from maskgen.transform.ordered_linear import Stage

OrderLoss = Callable[[nn.Module, Tensor, Stage, float], float]
"""(model, (batch, length) token ids, stage, share): adds `share` times the gradients of a loss to
the leaves of the orders, and gives the loss."""


def text_and_features(model: nn.Module, ids: Tensor, stage: Stage, share: float) -> float:
    """AMD's loss (arXiv 2601.22980): cross entropy, and alpha times the distance of hidden states.

    The distance is Smooth-L1, summed over decoder layers and features, a mean over tokens.
    """
    with torch.no_grad(), _as(stage, "dense"):
        dense = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[1:]
    found = model(input_ids=ids, use_cache=False, output_hidden_states=True)
    loss, _ = next_token_loss(found.logits, ids)
    for target, states in zip(dense, found.hidden_states[1:], strict=True):
        distance = F.smooth_l1_loss(states.float(), target.float(), reduction="sum")
        loss = loss + FEATURE_WEIGHT * distance / ids.numel()
    _backward(loss, share)
    return float(loss.detach())


FEATURE_WEIGHT = 1e-5
"""alpha of AMD's loss."""


def last_layer_angle(model: nn.Module, ids: Tensor, stage: Stage, share: float) -> float:
    """PermLLM's loss (arXiv 2510.10136): 1 - cosine to the dense output of the last layer."""
    last = decoder_layers(model)[1][-1]
    backbone = getattr(model, "base_model", model)

    def run() -> Tensor:
        outputs: list[Tensor] = []
        handle = last.register_forward_hook(lambda module, args, out: outputs.append(_first(out)))
        try:
            backbone(input_ids=ids, use_cache=False)
        finally:
            handle.remove()
        return outputs[0].float()

    with torch.no_grad(), _as(stage, "dense"):
        dense = run()
    loss = 1 - F.cosine_similarity(run(), dense, dim=-1).mean()
    _backward(loss, share)
    return float(loss.detach())


def layer_outputs(model: nn.Module, ids: Tensor, stage: Stage, share: float) -> float:
    """Every decoder layer by itself: squared error on the dense model's inputs.

    In units of what the dense layer adds to its input, a mean over layers. No gradient passes from
    one layer to another, so that one layer's activations are in memory at a time.
    """
    stack = decoder_layers(model)[1]
    with torch.no_grad(), _as(stage, "dense"):
        seen = _record(model, stack, ids)
    total = 0.0
    for layer, (states, arguments, target) in zip(stack, seen, strict=True):
        output = _first(layer(states, **arguments)).float()
        added = (target.float() - states.float()).square().mean()
        loss = (output - target.float()).square().mean() / (added * len(stack))
        if loss.requires_grad:
            _backward(loss, share)
        total += float(loss.detach())
    return total


LOSSES: Mapping[str, OrderLoss] = {
    "amd": text_and_features,
    "permllm": last_layer_angle,
    "block": layer_outputs,
}
"""Name of a setting -> loss."""
ADAMW_EPSILON: Mapping[str, float] = {"amd": 1e-2, "permllm": 1.2e-3, "block": 1.5e-4}
"""By loss: the same multiple of the gradient's first root mean square on SmolLM2-135M (norms 0.034,
0.0041 and 0.00051 over all costs). That of `amd` was chosen (docs/experiments.md)."""


@contextmanager
def _as(stage: Stage, mask: Any) -> Iterator[None]:
    before, stage.mask = stage.mask, mask
    try:
        yield
    finally:
        stage.mask = before


def _backward(loss: Tensor, share: float) -> None:
    (loss * share).backward()  # type: ignore[no-untyped-call]


def _first(output: Any) -> Tensor:
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


def _record(
    model: nn.Module, stack: nn.ModuleList, ids: Tensor
) -> list[tuple[Tensor, dict[str, Any], Tensor]]:
    """Input, keyword arguments and output of every decoder layer."""
    seen: list[tuple[Tensor, dict[str, Any], Tensor]] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        given = dict(kwargs)
        states = args[0] if args else given.pop("hidden_states")
        seen.append((states, given, _first(out)))

    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in stack]
    try:
        getattr(model, "base_model", model)(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen
