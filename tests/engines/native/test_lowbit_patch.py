"""Patches of int8 and int4 layers: byte for byte what packing the other mask gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.native import kernels, lowbit, patch
from engines.native.kernels import KernelError
from engines.native.layout import Layout, PackedWeights
from engines.native.lowbit import QuantisedWeights
from engines.native.patch import PatchError
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import keep_from_codes
from tests.engines.native.lowbit_reference import PAIRS, quantised_activations, random_weights

ISAS = kernels.supported_isas()


def masked(weights: QuantisedWeights, codes: np.ndarray) -> QuantisedWeights:
    return replace(weights, kept=lowbit.kept_words(keep_from_codes(codes, TWO_FOUR)))


def dense_values(kind: Layout, weights: QuantisedWeights) -> np.ndarray:
    return lowbit.int8_values(kind, replace(weights, kept=None))


def codes_of(rng: np.random.Generator, n: int, k: int, share: float) -> tuple[np.ndarray, ...]:
    """Codes of a mask, and of one with about `share` of its groups changed."""
    codes = rng.integers(0, 6, (n, k // 4), dtype=np.uint8)
    shift = rng.integers(1, 6, codes.shape).astype(np.uint8)
    return codes, np.where(rng.random(codes.shape) < share, (codes + shift) % 6, codes)


def layer(
    kind: Layout, n: int, k: int, block: int = 32, *, minima: bool = True, seed: int = 0
) -> tuple[QuantisedWeights, tuple[np.ndarray, ...], patch.Patch, list[PackedWeights]]:
    """Dense weights, two masks' codes, the patch between them, and both packed."""
    rng = np.random.default_rng(seed)
    weights = random_weights(kind, n, k, block, minima=minima, seed=seed)
    base, other = codes_of(rng, n, k, 0.3)
    change = patch.make_patch(dense_values(kind, weights), base, other)
    packed = [lowbit.pack(kind, masked(weights, codes)) for codes in (base, other)]
    return weights, (base, other), change, packed


@pytest.mark.parametrize("kind", PAIRS)
@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 40),
    st.integers(1, 60),
    st.sampled_from(lowbit.BLOCKS),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_applying_gives_the_bytes_of_the_other_mask_and_reverting_those_of_the_base(
    kind: Layout, n: int, groups: int, block: int, minima: bool, seed: int
) -> None:
    _, _, change, (base, other) = layer(kind, n, 4 * groups, block, minima=minima, seed=seed)
    changed = replace(base, data=base.data.copy())
    patch.apply_patch(change, changed, threads=1 + seed % 3)
    np.testing.assert_array_equal(changed.data, other.data)
    patch.revert_patch(change, changed, threads=1 + seed % 2)
    np.testing.assert_array_equal(changed.data, base.data)
    patch.apply_patch(patch.inverse(change), other)
    np.testing.assert_array_equal(other.data, base.data)


@pytest.mark.parametrize("kind", PAIRS)
def test_a_rebased_patch_leads_from_one_mask_to_another(kind: Layout) -> None:
    weights, (base, first), to_first, (_, packed) = layer(kind, 20, 96)
    second = codes_of(np.random.default_rng(9), 20, 96, 0.3)[0]
    to_second = patch.make_patch(dense_values(kind, weights), base, second)
    between = patch.rebase(to_second, to_first)
    patch.apply_patch(between, packed)
    np.testing.assert_array_equal(packed.data, lowbit.pack(kind, masked(weights, second)).data)
    direct = patch.make_patch(dense_values(kind, weights), first, second)
    np.testing.assert_array_equal(between.delta, direct.delta)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", PAIRS)
def test_the_product_of_a_patch_has_its_exact_bits(isa: str, kind: Layout) -> None:
    weights, (base, other), change, (packed, _) = layer(kind, 37, 200, 64)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((11, 200)).astype(np.float32)
    tokens = np.array([0, 3, 8, 10], np.uint32)
    product = kernels.linear(packed, x, isa=isa)
    values = dense_values(kind, weights).astype(np.int32)
    delta = values * (
        keep_from_codes(other, TWO_FOUR).astype(np.int32) - keep_from_codes(base, TWO_FOUR)
    )
    a, s = quantised_activations(x, 64)
    expected = product.copy()
    for b in range(s.shape[1]):
        inputs = slice(64 * b, 64 * (b + 1))
        sums = (a[:, inputs] @ delta[:, inputs].T).astype(np.float32)
        scale = weights.scales[:, b].astype(np.float32) * s[:, b, None]
        expected[tokens] = (expected + sums * scale)[tokens]
    patch.add_patch_product(change, x, tokens, product, weights=packed, isa=isa, threads=2)
    np.testing.assert_array_equal(product, expected)


@pytest.mark.parametrize("kind", PAIRS)
def test_weights_that_hold_another_mask_or_other_values_stay_as_they_are(kind: Layout) -> None:
    weights, _, change, (_, other) = layer(kind, 20, 64)
    before = other.data.copy()
    with pytest.raises(PatchError, match="do not hold the base mask"):
        patch.apply_patch(change, other)
    np.testing.assert_array_equal(other.data, before)
    changed = replace(weights, values=np.flip(weights.values, 0).copy())
    _, (base, _), _, _ = layer(kind, 20, 64)
    strange = lowbit.pack(kind, masked(changed, base))
    with pytest.raises(PatchError, match="do not hold the base mask"):
        patch.apply_patch(change, strange)


def test_misfits_are_refused() -> None:
    weights, _, change, (packed, _) = layer(Layout.SPARSE24_INT8, 16, 32)
    x, tokens = np.zeros((2, 32), np.float32), np.zeros(1, np.uint32)
    out = np.zeros((2, 16), np.float32)
    with pytest.raises(KernelError, match="needs the base weights"):
        patch.add_patch_product(change, x, tokens, out)
    with pytest.raises(KernelError, match="token 2 is beyond"):
        patch.add_patch_product(change, x, tokens + 2, out, weights=packed)
    with pytest.raises(KernelError, match="another number of inputs"):
        patch.add_patch_product(change, x[:, :16].copy(), tokens, out, weights=packed)
    bitmap = lowbit.pack(Layout.BITMAP32_INT8, weights)
    with pytest.raises(PatchError, match="cannot change BITMAP32_INT8"):
        patch.apply_patch(change, bitmap)
    with pytest.raises(KernelError, match="not bitmaps and dense ones"):
        patch.add_patch_product(change, x, tokens, out, weights=bitmap)
    with pytest.raises(ValueError, match="the value -128"):
        _ = replace(change, delta=np.full_like(change.delta, -128)).native
    short = PackedWeights(Layout.SPARSE24_INT8, 16, 32, packed.data.copy(), 32)
    short.data.flags.writeable = False
    with pytest.raises(PatchError, match="read-only"):
        patch.apply_patch(change, short)
