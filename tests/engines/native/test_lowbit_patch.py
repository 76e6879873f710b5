"""Patches of int8 and int4 layers: exact in place and back, and a product with defined bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import PatchError
from engines.native import kernels, lowbit
from engines.native.layout import Layout, PackedWeights
from engines.native.lowbit import QuantisedWeights
from engines.native.lowbit_patch import REMOVES, LowbitPatch, add_lowbit_product, make_lowbit_patch
from engines.native.patch import apply_patch, inverse, rebase, revert_patch
from tests.engines.native.lowbit_reference import (
    PAIRS,
    quantised_activations,
    random_keep,
    random_weights,
)

SPARSE = [layout for layout in Layout if layout.lowbit and layout.sparse]
FORMS = [(layout, minima) for layout in SPARSE for minima in (False, lowbit.is_int4(layout))]
forms = st.sampled_from(FORMS)
shapes = st.tuples(
    st.integers(1, 40), st.sampled_from([4, 32, 36, 96, 140]), st.sampled_from([32, 64, 128])
)


class Layer:
    """A layer under three masks, the second and third with half of the groups of the first."""

    def __init__(self, layout: Layout, minima: bool, n: int, k: int, block: int, seed: int) -> None:
        self.layout = layout
        weights = random_weights(layout, n, k, block, minima=minima, seed=seed)
        self.weights = replace(weights, kept=None)
        rng = np.random.default_rng(seed)
        size = 4 if layout in PAIRS else 32
        first = random_keep(rng, n, k, size)
        self.keeps = [first]
        for _ in range(2):
            other = random_keep(rng, n, k, size)
            groups = np.repeat(rng.random((n, -(-k // size))) < 0.5, size, axis=1)[:, :k]
            self.keeps.append(np.where(groups, other, first))

    def packed(self, mask: int) -> PackedWeights:
        weights = replace(self.weights, kept=lowbit.kept_words(self.keeps[mask]))
        return lowbit.pack(self.layout, weights)

    def values(self) -> np.ndarray:
        return lowbit.int8_values(self.layout, self.weights)

    def patch(self, old: int, new: int) -> LowbitPatch:
        return make_lowbit_patch(self.values(), self.keeps[old], self.keeps[new])


@settings(deadline=None, max_examples=60)
@given(forms, shapes, st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_applying_gives_the_other_masks_bytes_and_reverting_the_base(
    form: tuple[Layout, bool], shape: tuple[int, int, int], seed: int, threads: int
) -> None:
    layer = Layer(*form, *shape, seed)
    packed, other, before = layer.packed(0), layer.packed(1), layer.packed(0).data
    change = layer.patch(0, 1)
    apply_patch(change, packed, threads=threads)
    np.testing.assert_array_equal(packed.data, other.data)
    revert_patch(change, packed, threads=threads)
    np.testing.assert_array_equal(packed.data, before)


def assert_same_patch(found: object, expected: LowbitPatch) -> None:
    assert isinstance(found, LowbitPatch)
    for name in ("row_start", "place", "value"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@settings(deadline=None, max_examples=30)
@given(forms, shapes, st.integers(0, 2**32 - 1))
def test_patches_are_turned_round_and_rebased_as_if_made_from_the_values(
    form: tuple[Layout, bool], shape: tuple[int, int, int], seed: int
) -> None:
    layer = Layer(*form, *shape, seed)
    there, aside = layer.patch(0, 1), layer.patch(0, 2)
    assert_same_patch(inverse(there), layer.patch(1, 0))
    assert_same_patch(rebase(aside, there), layer.patch(1, 2))
    assert rebase(there, there).changed_groups(4) == 0


@pytest.mark.parametrize(("layout", "minima"), FORMS)
def test_the_product_is_the_sum_of_differences_block_by_block(layout: Layout, minima: bool) -> None:
    layer = Layer(layout, minima, 40, 140, 64, 3)
    change, base = layer.patch(0, 1), layer.packed(0)
    x = np.random.default_rng(4).standard_normal((7, 140)).astype(np.float32)
    tokens = np.array([6, 0, 3], np.uint32)
    out = kernels.linear(base, x)
    expected = out.copy()
    add_lowbit_product(change, base, x, tokens, out)
    values = layer.values().astype(np.int32)
    delta = np.where(layer.keeps[1], values, 0) - np.where(layer.keeps[0], values, 0)
    touched = layer.keeps[0] != layer.keeps[1]
    integers, scales = quantised_activations(x, 64)
    for b in range(3):
        inputs = slice(64 * b, 64 * (b + 1))
        sums = (integers[:, inputs] @ delta[:, inputs].T).astype(np.float32)
        scale = layer.weights.scales[:, b].astype(np.float32) * scales[:, b, None]
        changed = touched[:, inputs].any(axis=1)
        added = expected + sums * scale
        expected[tokens] = np.where(changed, added, expected)[tokens]
    np.testing.assert_array_equal(out, expected)
    whole = kernels.linear(layer.packed(1), x)
    largest = np.abs(whole).max()
    np.testing.assert_allclose(out[tokens], whole[tokens], atol=1e-5 * largest)


@pytest.mark.parametrize(("layout", "minima"), FORMS)
def test_weights_that_hold_another_mask_or_other_values_are_left_alone(
    layout: Layout, minima: bool
) -> None:
    layer = Layer(layout, minima, 33, 96, 32, 5)
    change = layer.patch(0, 1)
    for packed, name in ((layer.packed(1), "base mask"), (layer.packed(2), "base mask")):
        before = packed.data.copy()
        with pytest.raises(PatchError, match=f"do not hold the {name}"):
            apply_patch(change, packed)
        np.testing.assert_array_equal(packed.data, before)
    packed = layer.packed(0)
    with pytest.raises(PatchError, match="do not hold the patch's mask"):
        revert_patch(change, packed)
    removed = np.flatnonzero(change.place & REMOVES)[-1]
    value = change.value.copy()
    value[removed] ^= 1
    with pytest.raises(PatchError, match="do not hold the base mask"):
        apply_patch(replace(change, value=value), packed)
    np.testing.assert_array_equal(packed.data, layer.packed(0).data)


def test_misfits_are_refused() -> None:
    layer = Layer(Layout.SPARSE24_INT4, True, 16, 64, 32, 6)
    change = layer.patch(0, 1)
    with pytest.raises(PatchError, match="cannot change SPARSE24_INT8"):
        apply_patch(change, Layer(Layout.SPARSE24_INT8, False, 16, 32, 32, 6).packed(0))
    dense = lowbit.pack(Layout.DENSE_INT4, layer.weights)
    with pytest.raises(PatchError, match="DENSE_INT4"):
        apply_patch(change, dense)
    packed = layer.packed(0)
    packed.data.flags.writeable = False
    with pytest.raises(PatchError, match="read-only"):
        apply_patch(change, packed)
    with pytest.raises(PatchError, match="start from different masks"):
        rebase(inverse(change), change)
    with pytest.raises(PatchError, match="differ"):
        make_lowbit_patch(layer.values(), layer.keeps[0], layer.keeps[1][:, :32])
    x, out = np.ones((2, 64), np.float32), np.zeros((2, 16), np.float32)
    with pytest.raises(kernels.KernelError, match="token 2 is beyond"):
        add_lowbit_product(change, layer.packed(0), x, np.array([2]), out)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("row_start", np.array([0, 3], np.uint32), "do not cover"),
        ("place", np.array([0, 32], np.uint32), "beyond the layer's width"),
        ("place", np.array([1, 1 | REMOVES], np.uint32), "do not rise"),
        ("value", np.array([1, -128], np.int8), "-128"),
        ("value", np.array([1], np.int8), "do not fit together"),
    ],
)
def test_damaged_patches_never_reach_a_kernel(field: str, value: np.ndarray, message: str) -> None:
    fields = {
        "row_start": np.array([0, 2], np.uint32),
        "place": np.array([0, 1 | REMOVES], np.uint32),
        "value": np.array([1, 2], np.int8),
    }
    damaged = LowbitPatch(n=1, k=32, **{**fields, field: value})
    kept = np.full((1, 1), 0x33333333, np.uint32)
    weights = QuantisedWeights(
        np.ones((1, 32), np.int8), np.ones((1, 1), np.float16), 32, None, kept
    )
    with pytest.raises(kernels.KernelError, match=message):
        apply_patch(damaged, lowbit.pack(Layout.BITMAP32_INT8, weights))
