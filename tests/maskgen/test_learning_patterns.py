"""Learned masks of other patterns than 2:4: relaxations, sampling, and runs of a tiny model."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from maskgen.format.mask import Mask
from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.placements import keep_from_codes
from maskgen.learning import codes, mask_sampling
from maskgen.learning.batches import Batches
from maskgen.learning.distributed import World
from maskgen.learning.entropic_topk import entropic_top_n
from maskgen.learning.native import choose_kernels
from maskgen.learning.noise import NoiseKey, gumbels
from maskgen.learning.prior import similarity
from maskgen.learning.relaxation import (
    EntropicTopN,
    GumbelPlacements,
    Relaxation,
    SequentialTopN,
    Softness,
)
from maskgen.methods.maskllm import MaskLLM, MaskLLMConfig
from maskgen.methods.maskpro import MaskPro, MaskProConfig
from maskgen.methods.roi import RoI, RoIConfig
from maskgen.prune import PruneSettings, prune
from maskgen.torch_model import load_model
from tests.maskgen.patterns import PATTERNS
from tests.tiny_model import make_tiny_llama

CPU = torch.device("cpu")
KEY = NoiseKey(seed=7, step=3, micro_batch=1, layer=11)
SMALL = [Pattern(1, 4), Pattern(3, 5), Pattern(4, 8)]


def relaxations(pattern: Pattern) -> list[tuple[Relaxation, Softness]]:
    found: list[tuple[Relaxation, Softness]] = [
        (SequentialTopN(None, pattern), Softness(0.4, 0.7, 0.02)),
        (EntropicTopN(None, pattern), Softness(0.4, 0.7, 0.02)),
    ]
    if pattern.placements <= 70:
        found.append((GumbelPlacements(None, pattern), Softness(3.0, 1.3, 0.02)))
    return found


@pytest.mark.parametrize("pattern", SMALL, ids=str)
def test_gradients_equal_finite_differences(pattern: Pattern) -> None:
    generator = torch.Generator().manual_seed(0)
    width = 2 * pattern.m
    weight = torch.randn(2, width, generator=generator, dtype=torch.float64)
    slope = torch.randn(2, width, generator=generator, dtype=torch.float64)
    for relaxation, at in relaxations(pattern):
        logits = torch.randn(2, relaxation.planes, 2, generator=generator, dtype=torch.float64)

        def loss(moved: torch.Tensor, relaxation: Relaxation = relaxation, at: Softness = at):
            masked = relaxation.masked_weight(weight, moved, at, KEY).double()
            return float((slope * masked).sum() - at.regularisation * (masked**2).sum())

        expected = torch.zeros_like(logits)
        for index in itertools.product(*map(range, logits.shape)):
            for sign in (1, -1):
                moved = logits.clone()
                moved[index] += sign * 1e-2
                expected[index] += sign * loss(moved) / 2e-2
        found = torch.zeros_like(logits)
        relaxation.add_gradient(weight, logits, slope, at, KEY, found)
        torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_soft_mask_keeps_n_of_m_in_expectation(pattern: Pattern) -> None:
    generator = torch.Generator().manual_seed(1)
    for relaxation, at in relaxations(pattern):
        logits = torch.randn(3, relaxation.planes, 4, generator=generator)
        keep = relaxation.masked_weight(torch.ones(3, 4 * pattern.m), logits, at, KEY)
        sums = keep.view(3, 4, pattern.m).sum(-1)
        torch.testing.assert_close(sums, torch.full_like(sums, pattern.n), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_entropic_top_n_keeps_no_weight_twice_and_ends_hard(pattern: Pattern) -> None:
    logits = torch.randn(3, pattern.m, 4, generator=torch.Generator().manual_seed(6))
    kept = mask_sampling.top_n(logits, pattern.n)
    soft = entropic_top_n(logits, pattern.n, 1.0, 2.0, torch.zeros_like(logits))
    assert (soft > 0).all()
    assert (soft < 1).all()
    assert torch.equal(mask_sampling.top_n(soft, pattern.n), kept)
    hard = entropic_top_n(logits, pattern.n, 1.0, 1e-4, torch.zeros_like(logits))
    torch.testing.assert_close(hard, kept.float(), rtol=0, atol=1e-2)


@pytest.mark.parametrize("tau", [4.0, 0.3, 0.01])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p.m % 4 == 0], ids=str)
def test_native_entropic_top_n_equals_torch(pattern: Pattern, dtype: torch.dtype, tau) -> None:
    generator = torch.Generator().manual_seed(4)
    rows, groups, at = 3, 21, Softness(0.05, tau, 0.02)
    weight = torch.randn(rows, pattern.m * groups, generator=generator).to(dtype)
    gradient = torch.randn(rows, pattern.m * groups, generator=generator).to(dtype)
    logits = 0.1 * torch.randn(rows, pattern.m, groups, generator=generator)
    found = []
    for kernels in ("native", "torch"):
        chosen = choose_kernels(kernels, CPU, dtype, pattern, entropic=True)
        relaxation = EntropicTopN(chosen, pattern)
        out = torch.full_like(logits, 0.5)
        masked = relaxation.masked_weight(weight, logits, at, KEY)
        relaxation.add_gradient(weight, logits, gradient, at, KEY, out)
        found.append((masked.float(), out - 0.5))
    tolerance = 2**-7 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(found[0][0], found[1][0], rtol=tolerance, atol=2e-4)
    assert (found[0][1] - found[1][1]).abs().max() < 1e-3 * found[1][1].abs().max()


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p.m % 4 == 0], ids=str)
def test_native_entropic_decisions_equal_torch(pattern: Pattern) -> None:
    logits = torch.randn(5, pattern.m, 19, generator=torch.Generator().manual_seed(5))
    logits[0] = 0.0  # all tied: the lowest are kept
    prior = codes.codes_from_planes(mask_sampling.top_n(-logits, pattern.n), pattern)
    native = EntropicTopN(choose_kernels("auto", CPU, torch.float32, pattern, True), pattern)
    assert native.native is not None
    reference = EntropicTopN(None, pattern)
    assert torch.equal(native.keep(logits, prior, 0.5), reference.keep(logits, prior, 0.5))
    (ours, changed, sharp), expected = (r.decide(logits, prior, 0.5) for r in (native, reference))
    assert torch.equal(ours, expected[0])
    assert changed == expected[1]
    assert sharp == pytest.approx(expected[2], rel=1e-4)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_codes_as_tensors_are_those_of_the_mask(pattern: Pattern) -> None:
    scores = torch.randn(5, pattern.m, 6, generator=torch.Generator().manual_seed(2))
    scores[0, :, 0] = 1.0  # all tied: the lowest are kept
    kept = mask_sampling.top_n(scores, pattern.n)
    tensor = codes.codes_from_planes(kept, pattern)
    array = codes.codes_array(tensor, pattern)
    assert np.array_equal(
        keep_from_codes(array, pattern), mask_sampling.keep_from_planes(kept).numpy()
    )
    assert torch.equal(codes.planes_from_codes(codes.codes_tensor(array, pattern), pattern), kept)
    assert array[0, 0] == 0


def log_order(logits: torch.Tensor, order: list[int]) -> torch.Tensor:
    """Log-probability of drawing these weights in this order, from the definition."""
    left = list(range(len(logits)))
    total = torch.zeros((), dtype=logits.dtype)
    for index in order:
        total = total + logits[index] - torch.logsumexp(logits[left], 0)
        left.remove(index)
    return total


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_order_gradient_is_the_derivative_of_its_log_probability(pattern: Pattern) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(1, pattern.m, 1, generator=generator, dtype=torch.float64)
    noise = gumbels(1, pattern.m, 1, KEY, CPU).double()
    order = (logits + noise).view(-1).argsort(descending=True).tolist()[: pattern.n]
    variable = logits.view(-1).clone().requires_grad_()
    log_order(variable, order).backward()
    found = mask_sampling.order_gradient(logits, noise, pattern.n).view(-1)
    torch.testing.assert_close(found, variable.grad, rtol=1e-9, atol=1e-11)


def test_the_mean_order_gradient_is_that_of_the_set() -> None:
    logits = torch.tensor([1.3, -0.4, 0.2, 0.9], dtype=torch.float64)
    kept = torch.tensor([True, False, False, True]).view(1, 4, 1)
    exact = mask_sampling.log_probability_gradient(logits.view(1, 4, 1), kept).view(-1)
    mean, total = torch.zeros(4, dtype=torch.float64), 0.0
    for order in ([0, 3], [3, 0]):
        variable = logits.clone().requires_grad_()
        value = log_order(variable, order)
        value.backward()
        probability = float(value.detach().exp())
        mean, total = mean + probability * variable.grad, total + probability
    torch.testing.assert_close(mean / total, exact, rtol=1e-9, atol=1e-11)


def test_noise_of_many_planes_is_gumbel_and_independent() -> None:
    noise = gumbels(50, 32, 20, KEY, CPU)
    assert noise.shape == (50, 32, 20)
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(noise.std()) == pytest.approx(1.2825, abs=0.02)
    correlation = torch.corrcoef(noise.transpose(0, 1).reshape(32, -1)) - torch.eye(32)
    assert float(correlation.abs().max()) < 0.15
    assert torch.equal(gumbels(5, 4, 3, KEY, CPU), gumbels(5, 32, 3, KEY, CPU)[:, :4])


def test_similarity_has_no_mean() -> None:
    for pattern in (TWO_FOUR, *SMALL):
        sim = similarity(CPU, pattern)
        torch.testing.assert_close(sim.mean(dim=1), torch.zeros(len(sim)), rtol=0, atol=1e-5)


def test_native_kernels_are_for_two_of_four_and_the_entropic_top_n() -> None:
    assert choose_kernels("auto", CPU, torch.float32, Pattern(3, 5), True) is None
    assert choose_kernels("auto", CPU, torch.float32, Pattern(4, 8)) is None
    with pytest.raises(ValueError, match=r"they take 2:4 masks .* not 4:8"):
        choose_kernels("native", CPU, torch.float32, Pattern(4, 8))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_tiny_llama(tmp_path_factory.mktemp("patterns") / "model")


def prior(model_dir: Path, pattern: Pattern) -> Mask:
    return prune(model_dir, None, PruneSettings("magnitude", dtype="fp32", pattern=pattern)).mask


CASES = [
    (MaskLLM, MaskLLMConfig, Pattern(4, 8), {"learning_rate": 1.0}),
    (RoI, RoIConfig, Pattern(8, 16), {"learning_rate": 1.0}),
    (RoI, RoIConfig, Pattern(16, 32), {"learning_rate": 1.0, "top_n": "entropic"}),
    (MaskPro, MaskProConfig, Pattern(16, 32), {"learning_rate": 1e5, "strength": 0.1}),
]


@pytest.mark.parametrize(("method", "config", "pattern", "settings"), CASES)
def test_a_step_learns_masks_of_the_pattern(model_dir, method, config, pattern, settings) -> None:
    start = prior(model_dir, pattern)
    chosen = config(steps=2, sequence_length=16, batch_size=2, **settings)
    windows = np.random.default_rng(0).integers(0, 200, (4, 16), dtype=np.int32)
    batches = Batches(windows, 2, 0)
    model = load_model(model_dir, "fp32", "cpu")
    learner = method().learner(model, start.codes, chosen, batches, World(), pattern)
    first = learner.codes()
    if method is not MaskLLM:  # its logits begin with noise of their own
        assert all(np.array_equal(first[name], start.codes[name]) for name in first)
    for step in range(2):
        assert np.isfinite(learner.step(step).loss)
    learned = Mask(learner.codes(), start.base_digest, "x", "y", None, 0, pattern=pattern)
    assert learned.digest != start.digest
    assert 0 < learner.movement().changed <= 1


def test_maskllm_names_its_limit(model_dir: Path) -> None:
    pattern = Pattern(8, 16)
    windows = np.zeros((4, 16), dtype=np.int32)
    config = MaskLLMConfig(steps=1, sequence_length=16)
    with pytest.raises(ValueError, match=r"8:16 has 12,870, the limit is 70 \(4:8\)"):
        MaskLLM().learner(
            load_model(model_dir, "fp32", "cpu"),
            prior(model_dir, pattern).codes,
            config,
            Batches(windows, 1, 0),
            World(),
            pattern,
        )
