"""One-shot methods against slow, obvious references."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.placements import keep_from_codes, keep_highest
from maskgen.format.two_four import PAIRS
from maskgen.methods.admm import ADMM
from maskgen.methods.base import NoStatistic, SquaredNorms
from maskgen.methods.magnitude import Magnitude
from maskgen.methods.ria import Ria
from maskgen.methods.sparsegpt import (
    Hessian,
    SparseGPT,
    SparseGPTUpdate,
    inverse_factor,
    sparsegpt,
)
from maskgen.methods.sparseswaps import SparseSwaps, swap
from maskgen.methods.wanda import Wanda
from tests.maskgen.patterns import PATTERNS

CPU = torch.device("cpu")


def layer(seed: int, n: int = 24, k: int = 32, tokens: int = 200) -> tuple[torch.Tensor, ...]:
    """A weight (n, k) and inputs (tokens, k) whose features are correlated and differ in size."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=generator)
    mix = torch.randn(k, k, generator=generator) / k**0.5 + torch.eye(k)
    scale = torch.logspace(-1, 1, k)[torch.randperm(k, generator=generator)]
    return weight, torch.randn(tokens, k, generator=generator) @ mix * scale


def best_pairs(scores: np.ndarray) -> np.ndarray:
    """Codes by trying all six pairs of every group; the first of equal sums wins."""
    groups = scores.reshape(scores.shape[0], -1, 4)
    sums = np.stack([groups[..., pair].sum(-1) for pair in PAIRS], axis=-1)
    return sums.argmax(axis=-1)


def test_magnitude() -> None:
    weight, _ = layer(0)
    pruned = Magnitude().prune_layer(weight, NoStatistic())
    assert np.array_equal(pruned.codes, best_pairs(weight.double().abs().numpy()))
    assert pruned.weight is None
    with pytest.raises(TypeError):
        NoStatistic().add(weight)


def test_wanda_is_weight_times_input_norm() -> None:
    weight, inputs = layer(1)
    statistic = Wanda().statistic(32, CPU)
    for part in inputs.split(70):
        statistic.add(part)
    w, x = weight.double().numpy(), inputs.double().numpy()
    scores = np.empty_like(w)
    for i, j in itertools.product(*map(range, w.shape)):
        scores[i, j] = abs(w[i, j]) * np.sqrt((x[:, j] ** 2).sum())
    assert np.array_equal(Wanda().prune_layer(weight, statistic).codes, best_pairs(scores))
    assert not np.array_equal(best_pairs(scores), best_pairs(np.abs(w)))


def test_ria_is_relative_importance_times_root_of_input_norm() -> None:
    weight, inputs = layer(2)
    statistic = Ria().statistic(32, CPU)
    statistic.add(inputs)
    w, x = np.abs(weight.double().numpy()), inputs.double().numpy()
    scores = np.empty_like(w)
    for i, j in itertools.product(*map(range, w.shape)):
        relative = w[i, j] / w[:, j].sum() + w[i, j] / w[i].sum()
        scores[i, j] = relative * np.linalg.norm(x[:, j]) ** 0.5
    assert np.array_equal(Ria().prune_layer(weight, statistic).codes, best_pairs(scores))


def test_ria_survives_rows_and_columns_of_zeros() -> None:
    weight, inputs = layer(3)
    weight[0], weight[:, 5] = 0, 0
    statistic = Ria().statistic(32, CPU)
    statistic.add(inputs)
    codes = Ria().prune_layer(weight, statistic).codes
    assert not keep_from_codes(codes, TWO_FOUR)[1:, 5].all()


def best_keep(scores: np.ndarray, pattern: Pattern) -> np.ndarray:
    """Every placement of every group tried, where they are few enough; else sorted."""
    keep = np.zeros(scores.shape, dtype=bool)
    for row, column in itertools.product(range(len(scores)), range(0, scores.shape[1], pattern.m)):
        group = scores[row, column : column + pattern.m]
        if pattern.placements < 20_000:
            ways = itertools.combinations(range(pattern.m), pattern.n)
            best: list[int] = list(max(ways, key=lambda way, group=group: group[list(way)].sum()))
        else:
            best = sorted(range(pattern.m), key=lambda i, group=group: -group[i])[: pattern.n]
        keep[row, [column + i for i in best]] = True
    return keep


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_scores_keep_the_best_of_every_group_of_every_pattern(pattern: Pattern) -> None:
    weight, inputs = layer(7, n=3, k=32)
    w, x = np.abs(weight.double().numpy()), np.linalg.norm(inputs.double().numpy(), axis=0)
    relative = w / w.sum(axis=0) + w / w.sum(axis=1, keepdims=True)
    scores = {Magnitude: w, Wanda: w * x, Ria: relative * x**0.5}
    for kind, expected in scores.items():
        method = kind(pattern)
        statistic = method.statistic(32, CPU)
        if method.uses_calibration:
            statistic.add(inputs)
        codes = method.prune_layer(weight, statistic).codes
        assert np.array_equal(keep_from_codes(codes, pattern), best_keep(expected, pattern))


def slow_sparsegpt(
    weight: np.ndarray, inputs: np.ndarray, pattern: Pattern = TWO_FOUR
) -> tuple[np.ndarray, np.ndarray]:
    """SparseGPT in fp64 without blocks, Cholesky factors or in-place tricks.

    Column by column, the inverse Hessian of the columns not yet visited is computed from scratch
    (equation 3 of the paper); its first diagonal entry is the saliency's denominator, its first
    row distributes the error.
    """
    weight = weight.copy()
    rows, k = weight.shape
    hessian = 2 / len(inputs) * inputs.T @ inputs
    dead = np.diag(hessian) == 0
    weight[:, dead] = 0
    hessian[dead, dead] = 1
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(k)
    keep = np.zeros(weight.shape, dtype=bool)
    inverses = [np.linalg.inv(hessian[j:, j:]) for j in range(k)]
    for j in range(k):
        if j % pattern.m == 0:
            saliency = np.stack(
                [weight[:, j + i] ** 2 / inverses[j + i][0, 0] for i in range(pattern.m)], axis=1
            )
            for row in range(rows):
                order = sorted(range(pattern.m), key=lambda i, row=row: -saliency[row, i])
                best = order[: pattern.n]
                keep[row, [j + i for i in best]] = True
        error = np.where(keep[:, j], 0, weight[:, j]) / inverses[j][0, 0]
        weight[:, j:] -= np.outer(error, inverses[j][0])
        weight[~keep[:, j], j] = 0
    return keep, weight


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block", [4, 12, 128])
def test_sparsegpt_matches_a_slow_fp64_reference(seed: int, block: int) -> None:
    weight, inputs = layer(seed)
    if seed == 3:
        inputs[:, 6] = 0  # an input that is always zero
        weight[:, 6] = 0
    keep, updated = slow_sparsegpt(weight.double().numpy(), inputs.double().numpy())
    moments = inputs.double().T @ inputs.double()
    factor = inverse_factor(moments, len(inputs))
    codes, fast = sparsegpt(weight.double(), factor, block=block)
    assert np.array_equal(keep_from_codes(codes, TWO_FOUR), keep)
    np.testing.assert_allclose(fast.numpy(), updated, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("block", [1, 40, 128])
def test_sparsegpt_of_every_pattern_matches_the_reference(pattern: Pattern, block: int) -> None:
    weight, inputs = layer(8, n=6, k=64)
    keep, updated = slow_sparsegpt(weight.double().numpy(), inputs.double().numpy(), pattern)
    factor = inverse_factor(inputs.double().T @ inputs.double(), len(inputs))
    codes, fast = sparsegpt(weight.double(), factor, pattern, block)
    assert np.array_equal(keep_from_codes(codes, pattern), keep)
    np.testing.assert_allclose(fast.numpy(), updated, rtol=1e-9, atol=1e-12)


def test_sparsegpt_in_fp32_decides_as_in_fp64() -> None:
    weight, inputs = layer(5, n=64, k=64, tokens=500)
    keep, updated = slow_sparsegpt(weight.double().numpy(), inputs.double().numpy())
    statistic = SparseGPT().statistic(64, CPU)
    for part in inputs.split(77):
        statistic.add(part)
    mask_only = SparseGPT().prune_layer(weight, statistic)
    with_update = SparseGPTUpdate().prune_layer(weight, statistic)
    assert mask_only.weight is None
    assert np.array_equal(mask_only.codes, with_update.codes)
    # Where two saliencies are almost equal, fp32 may choose the other one.
    assert (keep_from_codes(with_update.codes, TWO_FOUR) == keep).mean() > 0.995
    assert with_update.weight is not None
    same = (keep_from_codes(with_update.codes, TWO_FOUR) == keep).all(axis=1)
    assert np.abs(with_update.weight.numpy()[same] - updated[same]).max() < 1e-3


def test_the_update_lowers_the_reconstruction_error() -> None:
    weight, inputs = layer(6)
    statistic = Hessian(32, CPU)
    statistic.add(inputs)
    pruned = SparseGPTUpdate().prune_layer(weight, statistic)
    assert pruned.weight is not None
    keep = torch.from_numpy(keep_from_codes(pruned.codes, TWO_FOUR))
    assert (pruned.weight[~keep] == 0).all()

    def error(candidate: torch.Tensor) -> float:
        return float(((weight - candidate) @ inputs.T).square().sum())

    magnitude = torch.from_numpy(
        keep_from_codes(Magnitude().prune_layer(weight, NoStatistic()).codes, TWO_FOUR)
    )
    assert error(pruned.weight) < 0.8 * error(weight * keep) < error(weight * magnitude)


def test_too_little_text_for_a_hessian_is_refused() -> None:
    with pytest.raises(ValueError, match="not positive definite"):
        inverse_factor(torch.full((8, 8), float("nan")), 4)


def test_squared_norms_add_up() -> None:
    statistic = SquaredNorms(3, CPU)
    statistic.add(torch.tensor([[3.0, 0.0, 1.0]]))
    statistic.add(torch.tensor([[4.0, 0.0, 1.0]]))
    assert statistic.norms.tolist() == pytest.approx([5.0, 0.0, 2**0.5])


def error(weight: torch.Tensor, inputs: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Squared error of the outputs of each row."""
    return ((weight - new) @ inputs.T).square().sum(dim=-1)


@pytest.mark.parametrize(("kept", "group"), [(2, 4), (4, 8), (16, 32)])
def test_swaps_lower_the_error_of_every_row_and_end_where_no_swap_gains(kept, group) -> None:
    weight, inputs = layer(5)
    gram = inputs.T @ inputs
    scores = (weight.abs() * inputs.norm(dim=0)).numpy()
    start = torch.from_numpy(keep_highest(scores, Pattern(kept, group)))
    keep = swap(weight, start, gram, group, sweeps=100)
    assert torch.equal(
        keep.unflatten(1, (-1, group)).sum(-1), start.unflatten(1, (-1, group)).sum(-1)
    )
    before, after = (error(weight, inputs, weight * mask) for mask in (start, keep))
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < 0.95 * before.sum()
    for row, (out, back) in itertools.product(range(3), itertools.permutations(range(group), 2)):
        if keep[row, out] and not keep[row, back]:
            other = keep[row].clone()
            other[out], other[back] = False, True
            assert error(weight[row], inputs, weight[row] * other) > after[row] * (1 - 1e-4)


def test_sparseswaps_starts_from_wanda_and_leaves_weights_alone() -> None:
    weight, inputs = layer(6)
    statistic = Hessian(32, CPU)
    statistic.add(inputs)
    norms = SquaredNorms(32, CPU)
    norms.add(inputs)
    pruned = SparseSwaps().prune_layer(weight, statistic)
    assert pruned.weight is None
    wanda = Wanda().prune_layer(weight, norms)
    errors = [
        error(weight, inputs, weight * torch.from_numpy(keep_from_codes(p.codes, TWO_FOUR))).sum()
        for p in (pruned, wanda)
    ]
    assert errors[0] < 0.95 * errors[1]


def test_admm_beats_sparsegpt_and_is_stationary_on_its_mask() -> None:
    weight, inputs = layer(7, n=64, k=64, tokens=400)
    statistic = Hessian(64, CPU)
    statistic.add(inputs)
    ours, theirs = (m().prune_layer(weight, statistic) for m in (ADMM, SparseGPTUpdate))
    assert ours.weight is not None
    assert theirs.weight is not None
    keep = torch.from_numpy(keep_from_codes(ours.codes, TWO_FOUR))
    assert not ours.weight[~keep].any()
    assert error(weight, inputs, ours.weight).sum() < error(weight, inputs, theirs.weight).sum()
    slope = ((ours.weight - weight) @ (inputs.T @ inputs))[keep]
    assert slope.norm() < 0.05 * (weight @ (inputs.T @ inputs)).norm()
