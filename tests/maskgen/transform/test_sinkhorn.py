"""Soft permutations and their gradient, against plain iteration in fp64."""

from __future__ import annotations

import itertools

import pytest
import torch

from maskgen.transform.sinkhorn import hard_permutation, soft_permutation


def iterated(costs: torch.Tensor, epsilon: float, count: int) -> torch.Tensor:
    log_p = -costs / epsilon
    for _ in range(count):
        log_p = log_p - torch.logsumexp(log_p, dim=2, keepdim=True)
        log_p = log_p - torch.logsumexp(log_p, dim=1, keepdim=True)
    return log_p.exp()


@pytest.mark.parametrize("epsilon", [1.0, 0.1, 0.03])
def test_rows_and_columns_sum_to_one(epsilon: float) -> None:
    torch.manual_seed(0)
    found = soft_permutation(torch.randn(3, 16, 16), epsilon, 1e-3, 5000)
    assert found.row_error <= 1e-3
    assert (found.matrix.sum(1) - 1).abs().max() < 1e-5
    assert (found.matrix.sum(2) - 1).abs().max() <= 1e-3


def test_twenty_iterations_are_not_enough_at_a_low_temperature() -> None:
    torch.manual_seed(0)
    costs = torch.randn(3, 64, 64)
    assert soft_permutation(costs, 0.1, 1e-3, 20).row_error > 1e-3
    again = soft_permutation(costs, 0.1, 1e-3, 5000)
    assert again.row_error <= 1e-3
    assert soft_permutation(costs, 0.1, 1e-3, 5000, again.column).iterations == 1


@pytest.mark.parametrize("epsilon", [1.0, 0.2])
def test_the_gradient_is_that_of_going_back_through_all_iterations(epsilon: float) -> None:
    torch.manual_seed(1)
    costs = torch.randn(2, 6, 6, dtype=torch.float64)
    weights = torch.randn(2, 6, 6, dtype=torch.float64)
    slopes = []
    for plain in (True, False):
        own = costs.clone().requires_grad_()
        if plain:
            matrix = iterated(own, epsilon, 2000)
        else:
            matrix = soft_permutation(own, epsilon, 1e-12, 5000).matrix
        (matrix * weights).sum().backward()
        slopes.append(own.grad)
    assert torch.allclose(slopes[0], slopes[1], atol=1e-7)


def test_the_gradient_stays_finite_at_a_permutation() -> None:
    costs = (-50 * torch.eye(8)[None]).requires_grad_()
    found = soft_permutation(costs, 0.1, 1e-3, 100)
    (found.matrix * torch.randn(8, 8)).sum().backward()
    assert costs.grad is not None
    assert costs.grad.abs().max() < 1e-3


def test_the_assignment_is_the_cheapest() -> None:
    torch.manual_seed(2)
    costs = torch.randn(2, 5, 5)
    for matrix, places in zip(costs, hard_permutation(costs), strict=True):
        ways = itertools.permutations(range(5))
        best = min(ways, key=lambda way: sum(float(matrix[c, p]) for p, c in enumerate(way)))
        assert tuple(places.tolist()) == best
