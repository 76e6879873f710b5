"""Patches: exact in place and back, and a product that gives the other mask's output."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import PatchError
from engines.native import kernels, layout, patch
from engines.native.layout import BF16


def masks(
    n: int, groups: int, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights with zeros among them, base codes, and codes of which about `share` differ."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((n, 4 * groups))
    weights[rng.random(weights.shape) < 0.1] = 0
    base = rng.integers(0, 6, (n, groups), dtype=np.uint8)
    other = rng.integers(0, 6, (n, groups), dtype=np.uint8)
    return weights.astype(BF16), base, np.where(rng.random(base.shape) < share, other, base)


patches = st.tuples(st.integers(1, 50), st.integers(1, 30), st.sampled_from([0.0, 0.05, 0.5, 1.0]))


@settings(deadline=None)
@given(patches, st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_applying_gives_the_other_masks_bytes_and_reverting_the_base(
    shape: tuple[int, int, float], seed: int, threads: int
) -> None:
    weights, base, new = masks(*shape, seed)
    packed, other = layout.pack_sparse(weights, base), layout.pack_sparse(weights, new)
    before = packed.data.copy()
    change = patch.make_patch(weights, base, new)
    patch.apply_patch(change, packed, threads=threads)
    np.testing.assert_array_equal(packed.data, other.data)
    patch.revert_patch(change, packed, threads=threads)
    np.testing.assert_array_equal(packed.data, before)


def assert_same_patch(found: patch.Patch, expected: patch.Patch) -> None:
    for name in ("row_start", "group", "codes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_array_equal(found.delta.view(np.uint16), expected.delta.view(np.uint16))


@settings(deadline=None)
@given(patches, st.integers(0, 2**32 - 1))
def test_patches_are_turned_round_and_rebased_as_if_made_from_the_weights(
    shape: tuple[int, int, float], seed: int
) -> None:
    weights, base, new = masks(*shape, seed)
    other = masks(*shape, seed + 1)[2]
    there, aside = patch.make_patch(weights, base, new), patch.make_patch(weights, base, other)
    assert_same_patch(patch.inverse(there), patch.make_patch(weights, new, base))
    assert_same_patch(patch.rebase(aside, there), patch.make_patch(weights, new, other))
    assert patch.rebase(there, there).group.size == 0


@pytest.mark.parametrize("isa", kernels.supported_isas())
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_the_product_serves_the_chosen_tokens_only(isa: str, share: float) -> None:
    weights, base, new = masks(70, 100, share, 3)
    change = patch.make_patch(weights, base, new)
    x = np.random.default_rng(4).standard_normal((21, 400)).astype(np.float32)
    tokens = np.array([20, 0, 7, 8], np.uint32)
    out = kernels.linear(layout.pack_sparse(weights, base), x, isa=isa)
    untouched = out.copy()
    patch.add_patch_product(change, x, tokens, out, isa=isa)
    expected = kernels.linear(layout.pack_sparse(weights, new), x, isa=isa)
    np.testing.assert_allclose(out[tokens], expected[tokens], atol=1e-4)
    rest = np.setdiff1d(np.arange(21), tokens)
    np.testing.assert_array_equal(out[rest], untouched[rest])


def test_a_patched_token_gets_the_same_bits_in_any_batch() -> None:
    weights, base, new = masks(48, 64, 0.2, 5)
    change = patch.make_patch(weights, base, new)
    packed = layout.pack_sparse(weights, base)
    x = np.random.default_rng(6).standard_normal((19, 256)).astype(np.float32)
    batched = kernels.linear(packed, x)
    patch.add_patch_product(change, x, np.arange(19, dtype=np.uint32), batched)
    for token in range(19):
        alone = kernels.linear(packed, x[token : token + 1])
        patch.add_patch_product(change, x[token : token + 1], np.zeros(1, np.uint32), alone)
        np.testing.assert_array_equal(alone[0], batched[token])


def test_memory_follows_the_changed_groups() -> None:
    weights, base, new = masks(512, 256, 0.01, 7)
    change = patch.make_patch(weights, base, new)
    changed = int((base != new).sum())
    assert change.nbytes == 13 * changed + 4 * 513
    assert change.changed_share == changed / base.size


def test_weights_that_hold_another_mask_are_left_alone() -> None:
    weights, base, new = masks(40, 20, 0.5, 8)
    change = patch.make_patch(weights, base, new)
    packed = layout.pack_sparse(weights, base)
    patch.apply_patch(change, packed)
    before = packed.data.copy()
    with pytest.raises(PatchError, match="do not hold the base mask"):
        patch.apply_patch(change, packed)
    np.testing.assert_array_equal(packed.data, before)
    patch.revert_patch(change, packed)
    with pytest.raises(PatchError, match="do not hold the patch's mask"):
        patch.revert_patch(change, packed)


def test_misfits_are_refused() -> None:
    weights, base, new = masks(16, 8, 0.5, 9)
    with pytest.raises(PatchError, match="bfloat16"):
        patch.make_patch(weights.astype(np.float32), base, new)
    with pytest.raises(PatchError, match="new codes"):
        patch.make_patch(weights, base, new[:, :7])
    with pytest.raises(PatchError, match="go up to 9"):
        patch.make_patch(weights, base, np.full_like(new, 9))
    change = patch.make_patch(weights, base, new)
    with pytest.raises(PatchError, match="16 x 64"):
        patch.apply_patch(
            change, layout.pack_sparse(np.ones((16, 64), BF16), np.zeros((16, 16), np.uint8))
        )
    with pytest.raises(PatchError, match="DENSE_BF16"):
        patch.apply_patch(change, layout.pack_dense(weights))
    packed = layout.pack_sparse(weights, base)
    packed.data.flags.writeable = False
    with pytest.raises(PatchError, match="read-only"):
        patch.apply_patch(change, packed)
    with pytest.raises(PatchError, match="start from different masks"):
        patch.rebase(patch.inverse(change), change)
    narrow = patch.make_patch(weights[:, :16], base[:, :4], new[:, :4])
    with pytest.raises(PatchError, match="16 x 16"):
        patch.rebase(narrow, change)
    x = np.ones((2, 32), np.float32)
    with pytest.raises(kernels.KernelError, match="token 2 is beyond"):
        patch.add_patch_product(change, x, np.array([2]), np.zeros((2, 16), np.float32))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("row_start", np.array([0, 5], np.uint32), "do not cover"),
        ("group", np.array([8, 9], np.uint32), "beyond the layer's width"),
        ("codes", np.array([0x60, 0x10], np.uint8), "no placement"),
        ("delta", np.zeros((1, 4), BF16), "do not fit together"),
    ],
)
def test_damaged_patches_never_reach_a_kernel(field: str, value: np.ndarray, message: str) -> None:
    fields = {
        "row_start": np.array([0, 2], np.uint32),
        "group": np.array([0, 1], np.uint32),
        "codes": np.array([0x10, 0x10], np.uint8),
        "delta": np.zeros((2, 4), BF16),
    }
    damaged = patch.Patch(n=1, k=32, **{**fields, field: value})
    packed = layout.pack_sparse(np.ones((1, 32), BF16), np.zeros((1, 8), np.uint8))
    with pytest.raises(kernels.KernelError, match=message):
        patch.apply_patch(damaged, packed)
