"""Orders of channels that let a mask keep more, from the scores of weights alone.

Both are of RIA (Zhang et al., "Plug-and-Play: An Efficient Post-training Pruning Method for Large
Language Models", ICLR 2024): channels dealt out by their sums, and one linear assignment a slot.

An order lists old channels: places g*M to g*M + M - 1 are group g of an N:M mask.
"""

from __future__ import annotations

import torch
from torch import Tensor


def retained(scores: Tensor, order: Tensor, n: int, m: int) -> float:
    """Share of all scores that an N:M mask keeps when channels stand in an order.

    Args:
        scores: (rows, size).
        order: (size,) old channels.
    """
    groups = scores[:, order].reshape(len(scores), -1, m)
    kept = groups.topk(n, dim=2).values.double().sum()
    return float(kept / scores.double().sum().clamp_min(torch.finfo(torch.float64).tiny))


def zigzag(scores: Tensor, m: int) -> Tensor:
    """Deal channels out by their summed scores: the largest to slot 0 of every group, and so on.

    Every second slot is dealt backwards, so that the groups' sums come out alike.

    Args:
        scores: (rows, size), size a multiple of `m`.

    Returns:
        (size,) order.
    """
    sums = scores.double().sum(dim=0)
    ranked = torch.argsort(sums, descending=True, stable=True).view(m, -1)
    slots = [row.flip(0) if slot % 2 else row for slot, row in enumerate(ranked)]
    return torch.stack(slots, dim=1).reshape(-1)


def assign(scores: Tensor, order: Tensor, n: int, m: int, sweeps: int) -> Tensor:
    """Improve an order: slot by slot, deal the channels of the slot out anew, as well as can be.

    With channel x in the place of a slot, a row keeps of a group the N - 1 largest of the others
    and the larger of x and the N-th. Summed over rows, the last part is half the distance in L1
    between the two plus what no assignment changes: so the best assignment is the one of the
    largest total distance.

    Args:
        scores: (rows, size).
        order: (size,) where to start.
        sweeps: over all slots, at most; an order that stays as it is ends them.

    Returns:
        (size,) order, which keeps at least what `order` does.
    """
    from scipy.optimize import linear_sum_assignment

    if n == m:
        return order
    groups = order.view(-1, m).clone()
    for _ in range(sweeps):
        before = groups.clone()
        for slot in range(m):
            rest = torch.cat((groups[:, :slot], groups[:, slot + 1 :]), dim=1)
            others = scores[:, rest.reshape(-1)].reshape(len(scores), -1, m - 1)
            threshold = others.topk(n, dim=2).values[..., -1].T.contiguous()
            candidates = scores[:, groups[:, slot]].T.contiguous()
            distance = torch.cdist(threshold, candidates, p=1)
            _, chosen = linear_sum_assignment(distance.double().cpu().numpy(), maximize=True)
            groups[:, slot] = groups[torch.from_numpy(chosen).to(groups.device), slot]
        if torch.equal(groups, before):
            break
    return groups.reshape(-1)
