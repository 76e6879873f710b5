"""Orders of all of a model's channels, from the scores of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from maskgen.calibration import LayerProgress, dense_statistics
from maskgen.format.pattern import Pattern
from maskgen.methods.base import PruneMethod, Statistic
from maskgen.registry import load_method
from maskgen.texts.windows import Windows
from maskgen.transform.config import AssignmentConfig, OrderConfig
from maskgen.transform.groups import Groups
from maskgen.transform.heuristics import assign, retained, zigzag
from maskgen.transform.scores import Scores, block_scores, learnable, readers_in, reorder


@torch.no_grad()
def model_scores(
    model: nn.Module,
    score: str,
    layers: Mapping[str, nn.Linear],
    windows: Windows | None,
    progress: LayerProgress,
) -> dict[str, Tensor]:
    """How much each weight of some layers matters in the dense model, by a one-shot method.

    Args:
        score: its name.
        windows: (windows, length) token ids; None for methods that need no text.

    Returns:
        Layer name -> (N, K) fp32.
    """
    method: PruneMethod[Any] = load_method(score, "prune")()
    found = {}
    for statistics in _statistics(model, method, layers, windows, progress):
        for name, statistic in statistics.items():
            weight = layers[name].weight.detach().float()
            try:
                found[name] = method.scores(weight, statistic)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    return found


def _statistics(
    model: nn.Module,
    method: PruneMethod[Any],
    layers: Mapping[str, nn.Linear],
    windows: Windows | None,
    progress: LayerProgress,
) -> Iterator[dict[str, Statistic]]:
    if windows is not None:
        yield from dense_statistics(model, layers, method.statistic, windows, progress)
        return
    for name, linear in layers.items():
        yield {name: method.statistic(linear.in_features, linear.weight.device)}


def find_orders(
    groups: Groups, scores: Scores, config: OrderConfig, pattern: Pattern, seed: int
) -> dict[str, Tensor]:
    """An order for every group that the settings name and that could matter.

    Returns:
        Group name -> (blocks, size) old channels.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = {}
    for name, group in groups.items():
        kind = name.rpartition(".")[2]
        if kind not in config.groups or not learnable(group, pattern.m):
            continue
        if not readers_in(group, scores):
            continue
        blocks = block_scores(group, scores, config.rows, generator)
        orders[name] = torch.stack([_order(block, config, pattern) for block in blocks])
    return orders


def _order(scores: Tensor, config: OrderConfig, pattern: Pattern) -> Tensor:
    dealt = zigzag(scores, pattern.m)
    if not isinstance(config, AssignmentConfig):
        return dealt
    assigned = assign(scores, dealt, pattern.n, pattern.m, config.sweeps)
    as_it_is = torch.arange(len(dealt), device=dealt.device)
    return max(
        (assigned, as_it_is), key=lambda order: retained(scores, order, pattern.n, pattern.m)
    )


def reordered(groups: Groups, scores: Scores, orders: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All scores with channels in new orders, by group."""
    moved = dict(scores)
    for name, order in orders.items():
        for reader in readers_in(groups[name], scores):
            moved[reader] = reorder(moved[reader], groups[name], reader, order)
    return moved


def mean_retained(scores: Scores, pattern: Pattern) -> float:
    """Mean over layers of the share of scores that masks keep."""
    shares = [
        retained(own, torch.arange(own.shape[1], device=own.device), pattern.n, pattern.m)
        for own in scores.values()
    ]
    return sum(shares) / len(shares)
