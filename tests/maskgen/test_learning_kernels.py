"""The native learning kernels against the torch reference, and both against independent truths."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import codes_from_keep
from maskgen.learning import gumbel, mask_sampling
from maskgen.learning.native import choose_kernels, native_module
from maskgen.learning.noise import NoiseKey, four_gumbels, philox, six_gumbels
from maskgen.learning.relaxation import EntropicTopN, GumbelPlacements, SequentialTopN, Softness

CPU = torch.device("cpu")
KEY = NoiseKey(seed=2**40 + 7, step=3, micro_batch=2, layer=0xDEADBEEF)
RELAXATIONS = {
    "gumbel": (GumbelPlacements, Softness(120.0, 1.3, 0.02)),
    "topk": (SequentialTopN, Softness(0.4, 0.7, 0.02)),
    "entropic": (EntropicTopN, Softness(0.4, 0.7, 0.02)),
}


def random_layer(planes: int, dtype: torch.dtype, rows: int = 5, groups: int = 37):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(rows, 4 * groups, generator=generator).to(dtype)
    spread = 0.02 if planes == 6 else 0.5
    logits = torch.randn(rows, planes, groups, generator=generator) * spread
    gradient = torch.randn(rows, 4 * groups, generator=generator).to(dtype)
    return weight, logits, gradient


@pytest.mark.parametrize(
    ("counter", "seed", "words"),
    [
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            2**64 - 1,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, seed, words):
    first = torch.tensor([counter[0]], dtype=torch.int64)
    assert tuple(int(w) for w in philox((first, *counter[1:]), seed)) == words


@pytest.mark.parametrize("draw", [six_gumbels, four_gumbels])
def test_noise_is_standard_gumbel(draw):
    noise = draw(64, 512, KEY, CPU)
    euler, variance = 0.5772156649, np.pi**2 / 6
    assert noise.mean().item() == pytest.approx(euler, abs=0.02)
    assert noise.var().item() == pytest.approx(variance, rel=0.03)
    # Planes share the 128 bits of one call; they must not share information.
    flat = noise.movedim(1, 0).flatten(1)
    correlation = torch.corrcoef(flat) - torch.eye(len(flat))
    assert correlation.abs().max() < 0.03


def test_every_part_of_the_key_changes_the_noise():
    reference = six_gumbels(2, 8, KEY, CPU)
    for change in ({"seed": 1}, {"step": 4}, {"micro_batch": 0}, {"layer": 1}):
        fields = {n: getattr(KEY, n) for n in ("seed", "step", "micro_batch", "layer")} | change
        assert not torch.equal(reference, six_gumbels(2, 8, NoiseKey(**fields), CPU)), change


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", RELAXATIONS)
def test_native_relaxations_equal_torch(name, dtype):
    cls, at = RELAXATIONS[name]
    weight, logits, gradient = random_layer(cls(None).planes, dtype)
    results = []
    for kernels in ("native", "torch"):
        relaxation = cls(choose_kernels(kernels, CPU, dtype))
        out = torch.full_like(logits, 0.5)  # gradients are added to what is there
        masked = relaxation.masked_weight(weight, logits, at, KEY)
        relaxation.add_gradient(weight, logits, gradient, at, KEY, out)
        results.append((masked, out))
    (masked, out), (masked_torch, out_torch) = results
    tolerance = 2**-7 if dtype == torch.bfloat16 else 1e-5  # one last place
    torch.testing.assert_close(masked, masked_torch, rtol=tolerance, atol=1e-6)
    scale = (out_torch - 0.5).abs().max()
    assert (out - out_torch).abs().max() < 2e-5 * scale


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_every_instruction_set_equals_torch(isa):
    """The whole comparison again in a process that is forced to one instruction set."""
    beside = (
        "test_quantiser.py",
        "test_learning_loss.py",
        "test_learning_norms.py",
        "test_active_groups.py",
        "transform/test_ordered_linear.py",
    )
    files = __file__, *(str(Path(__file__).parent / name) for name in beside)
    code = (
        "import sys\nfrom maskgen import _native\n"
        "try:\n    name = _native.isa()\nexcept ValueError as e:\n    print(e); sys.exit(77)\n"
        f"assert name == {isa!r}, name\nimport pytest\n"
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *{files!r}, "
        "'-k', 'native_ and not instruction']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TWOFOUR_ISA": isa, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_build_without_the_native_kernels_is_no_silent_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "maskgen._native", None)
    assert choose_kernels("torch", CPU, torch.float32) is None
    for kernels in ("auto", "native"):
        with pytest.raises(ValueError, match=r"maskgen\._native is not built.*kernels=torch"):
            choose_kernels(kernels, CPU, torch.float32)
    assert choose_kernels("auto", CPU, torch.float64) is None
    with pytest.raises(ValueError, match=r"not 2:4 of torch\.float64 on cpu"):
        choose_kernels("native", CPU, torch.float64)


def test_native_sampling_equals_torch():
    native = native_module()
    weight, logits, _ = random_layer(4, torch.bfloat16, rows=9, groups=50)
    masked = torch.empty_like(weight)
    native.sample_forward(weight, logits, masked, KEY.seed, KEY.step, KEY.micro_batch, KEY.layer)
    kept = mask_sampling.top_n(logits + four_gumbels(9, 50, KEY, CPU), 2)
    assert torch.equal(masked, weight * mask_sampling.keep_from_planes(kept))

    updated = logits.clone()
    native.sample_update(updated, 0.25, KEY.seed, KEY.step, KEY.micro_batch, KEY.layer)
    expected = logits + 0.25 * mask_sampling.log_probability_gradient(logits, kept)
    torch.testing.assert_close(updated, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", RELAXATIONS)
def test_native_decisions_equal_torch_and_are_exactly_two_of_four(name):
    cls, at = RELAXATIONS[name]
    _, logits, _ = random_layer(cls(None).planes, torch.bfloat16)
    prior = torch.randint(0, 6, (5, 37), dtype=torch.uint8)
    native = cls(choose_kernels("native", CPU, torch.bfloat16)).decide(logits, prior, at.scale)
    codes, changed, sharpness = cls(None).decide(logits, prior, at.scale)
    assert torch.equal(native[0], codes)
    assert native[1] == changed == int((codes != prior).sum())
    assert native[2] == pytest.approx(sharpness, rel=1e-4)
    assert 0 < sharpness <= codes.numel()


def test_ties_keep_the_lowest_index():
    logits = torch.zeros(1, 4, 20)
    prior = torch.zeros(1, 20, dtype=torch.uint8)
    for relaxation in (SequentialTopN(None), SequentialTopN(native_module())):
        assert torch.equal(relaxation.decide(logits, prior, 1.0)[0], prior)
    logits[0, 3] = 1.0  # the last wins, then the lowest of the tied rest: placement 1001
    for relaxation in (SequentialTopN(None), SequentialTopN(native_module())):
        assert (relaxation.decide(logits, prior, 1.0)[0] == 2).all()


def finite_difference(function, logits: torch.Tensor, step: float = 1e-3) -> torch.Tensor:
    """Central differences of a scalar function of float64 logits."""
    out = torch.zeros_like(logits)
    for index in np.ndindex(*logits.shape):
        for sign in (1, -1):
            moved = logits.clone()
            moved[index] += sign * step
            out[index] += sign * function(moved) / (2 * step)
    return out


@pytest.mark.parametrize("name", RELAXATIONS)
def test_relaxation_gradients_equal_finite_differences(name):
    """Forward and backward are written separately; the loss includes the regularisation."""
    cls, _ = RELAXATIONS[name]
    at = Softness(1.7, 0.8, 0.3)
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    slope = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    logits = torch.randn(2, cls(None).planes, 3, generator=generator, dtype=torch.float64)
    relaxation = cls(None)

    def loss(moved: torch.Tensor) -> float:
        masked = relaxation.masked_weight(weight, moved, at, KEY).double()
        return float((slope * masked).sum() - at.regularisation * (masked**2).sum())

    # Computed in fp32 inside: the step must be large enough to stand out from rounding.
    expected = finite_difference(loss, logits, 1e-2)
    out = torch.zeros_like(logits)
    relaxation.add_gradient(weight, logits, slope, at, KEY, out)
    torch.testing.assert_close(out, expected, rtol=2e-3, atol=2e-3)


def test_log_probability_gradient_equals_finite_differences():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64)
    kept = mask_sampling.top_n(logits + four_gumbels(3, 2, KEY, CPU).double(), 2)
    expected = finite_difference(
        lambda moved: float(mask_sampling.log_probability(moved, kept).sum()), logits, 1e-6
    )
    gradient = mask_sampling.log_probability_gradient(logits, kept)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)


def test_log_probabilities_of_all_pairs_sum_to_one_and_match_the_sampler():
    logits = torch.tensor([1.3, -0.4, 0.2, 0.9]).view(1, 4, 1).expand(1, 4, 40000).contiguous()
    kept = mask_sampling.top_n(logits + four_gumbels(1, 40000, KEY, CPU), 2)
    seen = np.bincount(mask_sampling.pair_codes(kept).numpy().ravel(), minlength=6) / 40000
    one = logits[:, :, :1].double()
    probabilities = []
    for placement in gumbel.placements_like(one):
        probabilities.append(
            float(mask_sampling.log_probability(one, placement.bool().view(1, 4, 1)).exp())
        )
    assert sum(probabilities) == pytest.approx(1.0)
    np.testing.assert_allclose(seen, probabilities, atol=0.01)


def test_pair_codes_are_the_placements_of_maskgen():
    generator = torch.Generator().manual_seed(4)
    kept = mask_sampling.top_n(torch.randn(7, 4, 30, generator=generator), 2)
    keep = mask_sampling.keep_from_planes(kept).numpy()
    assert np.array_equal(mask_sampling.pair_codes(kept).numpy(), codes_from_keep(keep, TWO_FOUR))


@pytest.mark.parametrize("name", RELAXATIONS)
def test_a_soft_mask_keeps_two_of_four_in_expectation(name):
    cls, at = RELAXATIONS[name]
    _, logits, _ = random_layer(cls(None).planes, torch.float32)
    masked = cls(None).masked_weight(torch.ones(5, 4 * 37), logits, at, KEY)
    torch.testing.assert_close(masked.view(5, 37, 4).sum(-1), torch.full((5, 37), 2.0))
