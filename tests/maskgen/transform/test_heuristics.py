"""Orders from scores, against slow and obvious rules."""

from __future__ import annotations

import itertools

import pytest
import torch

from maskgen.transform.heuristics import assign, retained, zigzag


def kept(scores: torch.Tensor, order: torch.Tensor, n: int, m: int) -> float:
    total = 0.0
    for row in scores.tolist():
        places = [row[channel] for channel in order.tolist()]
        for start in range(0, len(places), m):
            total += sum(sorted(places[start : start + m], reverse=True)[:n])
    return total


@pytest.fixture
def scores() -> torch.Tensor:
    torch.manual_seed(0)
    scale = torch.rand(16).square() + 0.01
    return (torch.randn(24, 16).abs() * scale).contiguous()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (2, 2)])
def test_retained_is_what_the_mask_keeps(scores: torch.Tensor, n: int, m: int) -> None:
    order = torch.randperm(16)
    share = kept(scores, order, n, m) / float(scores.sum())
    assert retained(scores, order, n, m) == pytest.approx(share, rel=1e-6)


def test_zigzag_deals_channels_out_by_their_sums() -> None:
    sums = torch.tensor([3.0, 9, 1, 7, 5, 11, 2, 8])
    # 11 9 | 8 7 backwards | 5 3 | 2 1 backwards
    assert sums[zigzag(sums[None], 4)].tolist() == [11, 7, 5, 1, 9, 8, 3, 2]


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (3, 4)])
def test_assignment_keeps_more_with_every_sweep(scores: torch.Tensor, n: int, m: int) -> None:
    order = zigzag(scores, m)
    shares = [retained(scores, order, n, m)]
    for _ in range(4):
        order = assign(scores, order, n, m, sweeps=1)
        shares.append(retained(scores, order, n, m))
        assert sorted(order.tolist()) == list(range(16))
    assert shares == sorted(shares)
    assert shares[-1] > shares[0]


def test_one_slot_is_assigned_as_well_as_can_be(scores: torch.Tensor) -> None:
    """With two groups of four there is one other way a slot; with three groups there are five."""
    scores, order = scores[:, :12].contiguous(), torch.arange(12)
    best = assign(scores, order, 2, 4, sweeps=1)
    now = order.view(3, 4).clone()
    for slot in range(4):
        ways = []
        for way in itertools.permutations(range(3)):
            other = now.clone()
            other[:, slot] = now[list(way), slot]
            ways.append((kept(scores, other.flatten(), 2, 4), other))
        now = max(ways, key=lambda pair: pair[0])[1]
    assert kept(scores, best, 2, 4) == pytest.approx(kept(scores, now.flatten(), 2, 4), rel=1e-6)
