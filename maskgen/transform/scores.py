"""What orders are judged by: the scores of the weights that read a group's channels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from maskgen.transform.groups import PermutationGroup, channel_order

Scores = Mapping[str, Tensor]
"""Name of a linear -> (N, K) fp32, how much each weight matters (`PruneMethod.scores`)."""


def learnable(group: PermutationGroup, m: int) -> bool:
    """Whether another order of the group could matter to a mask with groups of `m` inputs.

    Whole heads move in multiples of a group; and channels whose blocks are no multiple of it would
    stand in groups with those of other blocks.
    """
    return group.size % m == 0 and all(place.unit == 1 for place in group.readers)


def readers_in(group: PermutationGroup, scores: Scores) -> list[str]:
    """Names of the group's readers that a mask covers."""
    names = [place.tensor.removesuffix(".weight") for place in group.readers]
    return [name for name in names if name in scores]


def block_scores(
    group: PermutationGroup, scores: Scores, rows: int, generator: torch.Generator
) -> list[Tensor]:
    """For every block of a group, the scores of all that reads its channels.

    Each reader's scores are divided by their mean, so that all readers count alike.

    Args:
        rows: of all readers together, drawn evenly from each; enough to judge an order by.
        generator: that draws them.

    Returns:
        One (rows, size) matrix a block; query heads that share a block lie below each other.
    """
    parts: list[Tensor] = []
    total = sum(len(scores[name]) for name in readers_in(group, scores))
    for place in group.readers:
        own = scores.get(place.tensor.removesuffix(".weight"))
        if own is None:
            continue
        if total > rows:
            share = max(1, round(rows * len(own) / total))
            own = own[torch.randperm(len(own), generator=generator)[:share].to(own.device)]
        own = own / own.mean().clamp_min(torch.finfo(own.dtype).tiny)
        split = own.reshape(len(own), group.blocks, place.repeat, group.size)
        parts.append(split.permute(1, 0, 2, 3).reshape(group.blocks, -1, group.size))
    return list(torch.cat(parts, dim=1))


def reorder(scores: Tensor, group: PermutationGroup, name: str, order: Tensor) -> Tensor:
    """A reader's scores with the group's channels in another order.

    Args:
        scores: (N, K) of the reader.
        order: (blocks, size) old channels.
    """
    (place,) = [p for p in group.readers if p.tensor == f"{name}.weight"]
    columns = channel_order(group, place, order.cpu().numpy().astype("uint16"))
    return scores[:, torch.from_numpy(columns).to(scores.device)]
