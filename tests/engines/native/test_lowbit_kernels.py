"""Products of int8 and int4 weights: the reference's bits, everywhere and in any batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.native import kernels, layout, lowbit
from engines.native.kernels import KernelError
from engines.native.layout import BF16, Layout
from tests.engines.native.lowbit_reference import INT4, LAYOUTS, product, random_weights

ISAS = kernels.supported_isas()
# Around every panel size (8 tokens), one pass over the weights (96), several.
TOKENS = (1, 2, 3, 5, 8, 9, 17, 96, 97, 130)


def activations(tokens: int, k: int, seed: int = 1) -> np.ndarray:
    """Blocks of very different size, some of them zero."""
    rng = np.random.default_rng(seed)
    size = np.exp2(rng.integers(-12, 12, (tokens, -(-k // 32)))) * (rng.random((tokens, 1)) < 0.95)
    return (rng.standard_normal((tokens, k)) * np.repeat(size, 32, 1)[:, :k]).astype(np.float32)


def assert_same_bits(result: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(result.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", LAYOUTS)
@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(1, 50),
    groups=st.integers(1, 150),
    block=st.sampled_from(lowbit.BLOCKS),
    minima=st.booleans(),
    m=st.sampled_from([4, 8, 16, 32]),
    tokens=st.integers(1, 20),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_gives_the_bits_of_the_reference(
    isa: str,
    kind: Layout,
    n: int,
    groups: int,
    block: int,
    minima: bool,
    m: int,
    tokens: int,
    threads: int,
    seed: int,
) -> None:
    k = 4 * groups
    weights = random_weights(kind, n, k, block, minima=minima, m=m, seed=seed)
    x = activations(tokens, k, seed)
    result = kernels.linear(lowbit.pack(kind, weights), x, threads=threads, isa=isa)
    assert_same_bits(result, product(kind, weights, x))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_token_gets_the_same_bits_in_any_batch(isa: str, kind: Layout) -> None:
    weights = random_weights(kind, 70, 576, 128, minima=True)
    packed = lowbit.pack(kind, weights)
    x = activations(max(TOKENS), 576)
    alone = np.concatenate([kernels.linear(packed, row[None], isa=isa) for row in x])
    assert_same_bits(alone, product(kind, weights, x))
    for tokens in TOKENS:
        for threads in (1, 2, 3):
            batched = kernels.linear(packed, x[:tokens], threads=threads, isa=isa)
            assert_same_bits(batched, alone[:tokens])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_largest_values_do_not_overflow(isa: str, kind: Layout) -> None:
    for value in (0, 15) if kind in INT4 else (-127, 127):
        weights = random_weights(kind, 16, 256, 128, minima=True)
        weights.values[:] = value
        if weights.minima is not None:
            weights.minima[:] = 7 if value else -127
        for sign in (-1, 1):
            x = np.full((9, 256), sign * 3.0, np.float32)
            result = kernels.linear(lowbit.pack(kind, weights), x, isa=isa)
            assert_same_bits(result, product(kind, weights, x))


@pytest.mark.parametrize("isa", ISAS)
def test_quantised_products_are_near_the_exact_ones(isa: str) -> None:
    """Not only what the reference says: half a step of every activation bounds the difference."""
    weights = random_weights(Layout.SPARSE24_INT8, 40, 576, 32)
    exact_weights = lowbit.dequantise(Layout.SPARSE24_INT8, weights).astype(np.float64)
    x = activations(6, 576)
    blocks = np.abs(x).reshape(6, -1, 32).max(axis=2)
    half_step = np.repeat(blocks / 254 * (1 + 1e-5), 32, axis=1)
    allowed = half_step @ np.abs(exact_weights).T
    result = kernels.linear(lowbit.pack(Layout.SPARSE24_INT8, weights), x, isa=isa)
    exact = x.astype(np.float64) @ exact_weights.T
    rounding = 1e-5 * (np.abs(x) @ np.abs(exact_weights).T)
    assert (np.abs(result - exact) <= allowed + rounding).all()


@pytest.mark.parametrize("isa", ISAS)
def test_bias_addition_and_bf16_output(isa: str) -> None:
    packed = lowbit.pack(Layout.SPARSE24_INT4, random_weights(Layout.SPARSE24_INT4, 37, 64, 32))
    x = activations(11, 64)
    plain = kernels.linear(packed, x, isa=isa)
    bias = activations(1, 37, 2)[0]
    with_bias = kernels.linear(packed, x, bias=bias, isa=isa)
    assert_same_bits(with_bias, plain + bias)
    residual = activations(11, 37, 3)
    added = kernels.linear(packed, x, out=residual.copy(), add=True, isa=isa)
    assert_same_bits(added, residual + plain)
    half = kernels.linear(packed, x, bias=bias, out=np.empty((11, 37), BF16), isa=isa)
    np.testing.assert_array_equal(half.view(np.uint16), with_bias.astype(BF16).view(np.uint16))


@pytest.mark.parametrize("isa", ISAS)
def test_bf16_activations_are_taken_as_they_are(isa: str) -> None:
    packed = lowbit.pack(Layout.DENSE_INT8, random_weights(Layout.DENSE_INT8, 16, 96, 64))
    x = activations(5, 96).astype(BF16)
    assert_same_bits(
        kernels.linear(packed, x, isa=isa), kernels.linear(packed, x.astype(np.float32), isa=isa)
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", LAYOUTS)
def test_gated_product(isa: str, kind: Layout) -> None:
    gate = lowbit.pack(kind, random_weights(kind, 45, 100, 32, minima=True, seed=1))
    up = lowbit.pack(kind, random_weights(kind, 45, 100, 32, minima=True, seed=2))
    for tokens in (1, 8, 21):
        x = activations(tokens, 100) / 4096
        g = kernels.linear(gate, x, isa=isa).astype(np.float64)
        with np.errstate(over="ignore"):
            expected = g / (1 + np.exp(-g)) * kernels.linear(up, x, isa=isa)
        result = kernels.gated(gate, up, x, isa=isa)
        np.testing.assert_allclose(result, expected, rtol=2e-6, atol=1e-30)
        assert_same_bits(result, kernels.gated(gate, up, x, isa="portable"))


@pytest.mark.parametrize("isa", ISAS)
def test_activations_that_are_no_numbers_reach_only_their_own_token(isa: str) -> None:
    packed = lowbit.pack(Layout.SPARSE24_INT8, random_weights(Layout.SPARSE24_INT8, 20, 96, 32))
    x = activations(6, 96)
    x[2, 5], x[4, 70] = np.nan, -np.inf
    result = kernels.linear(packed, x, isa=isa)
    assert np.isfinite(result[[0, 1, 3, 5]]).all()
    assert np.isnan(result[[2, 4]]).all()


@pytest.mark.parametrize("isa", ISAS)
def test_the_smallest_activations_are_zero(isa: str) -> None:
    packed = lowbit.pack(Layout.DENSE_INT8, random_weights(Layout.DENSE_INT8, 16, 32, 32))
    x = np.full((3, 32), 2.0**-101, np.float32)
    x[1], x[2] = 2.0**-140, 2.0**-99
    result = kernels.linear(packed, x, isa=isa)
    assert not result[:2].any()
    assert result[2].any()


@pytest.mark.parametrize("isa", ISAS)
def test_kernel_names_tell_layouts_apart(isa: str) -> None:
    assert len({kernels.kernel_name(kind, 1, isa) for kind in LAYOUTS}) == len(LAYOUTS)


def test_misfits_are_refused() -> None:
    weights = random_weights(Layout.DENSE_INT4, 16, 64, 32)
    packed = lowbit.pack(Layout.DENSE_INT4, weights)
    other = lowbit.pack(Layout.DENSE_INT4, random_weights(Layout.DENSE_INT4, 16, 64, 64))
    x = activations(2, 64)
    with pytest.raises(KernelError, match="32 inputs, the weights 64"):
        kernels.linear(packed, activations(2, 32))
    with pytest.raises(KernelError, match="must have one layout"):
        kernels.gated(packed, other, x)
    with pytest.raises(layout.LayoutError, match="not bf16"):
        layout.unpack(packed)
    with pytest.raises(layout.LayoutError, match="not bf16"):
        layout.validate(packed)
