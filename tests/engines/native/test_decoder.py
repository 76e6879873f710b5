"""The border between Python and the native decoder: what it takes, refuses and keeps alive."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engines.native._native import (
    PAGE_POSITIONS,
    Blocks,
    Decoder,
    Layer,
    Limits,
    Model,
    Norm,
    PackedLayer,
    PatchArrays,
    Rope,
    Step,
)
from engines.native.layout import BF16, pack_dense, pack_sparse
from engines.native.patch import Patch, make_patch

HIDDEN, HEADS, DIM, WIDTH, VOCAB = 8, 2, 4, 16, 12
SHAPES = [(HEADS * DIM, HIDDEN)] * 3 + [(HIDDEN, HEADS * DIM)] + [(WIDTH, HIDDEN)] * 2
SHAPES.append((HIDDEN, WIDTH))


def floats(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def layer(**change: Any) -> Layer:
    parts: dict[str, Any] = {
        "attention_input": Norm(floats(HIDDEN)),
        "mlp_input": Norm(floats(HIDDEN, 1)),
        "window": 0,
        "q_norm": None,
        "k_norm": floats(DIM, 2),
        "biases": [floats(SHAPES[0][0], 3), *[None] * 6],
    }
    return Layer(**parts | change)


def model(**change: Any) -> Model:
    parts: dict[str, Any] = {
        "hidden": HIDDEN,
        "heads": HEADS,
        "kv_heads": HEADS,
        "head_dim": DIM,
        "intermediate": WIDTH,
        "vocab": VOCAB,
        "rotary_dim": DIM,
        "eps": 1e-6,
        "blocks": Blocks(attention_scale=0.5),
        "ropes": [Rope(floats(DIM // 2), 1.0)],
        "final_norm": Norm(floats(HIDDEN)),
        "head": pack_dense(floats(VOCAB * HIDDEN).reshape(VOCAB, HIDDEN).astype(BF16)).native,
        "embedding": None,
        "layers": [layer()],
    }
    return Model(**parts | change)


def decoder(built: Model | None = None) -> Decoder:
    return Decoder(built or model(), Limits(8, 8, 32, 4, 1), "portable")


def weights(seed: int = 0) -> list[list[PackedLayer]]:
    packed = []
    for n, k in SHAPES:
        rng = np.random.default_rng(seed)
        codes = rng.integers(0, 6, (n, k // 4), dtype=np.uint8)
        packed.append(pack_sparse(rng.standard_normal((n, k)).astype(BF16), codes).native)
    return [packed]


def patches() -> list[list[PatchArrays | None]]:
    n, k = SHAPES[0]
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 6, (n, k // 4), dtype=np.uint8)
    dense = rng.standard_normal((n, k)).astype(BF16)
    return [[make_patch(dense, codes, (codes + 1) % 6).native, *[None] * 6]]


def step(**change: Any) -> Step:
    parts: dict[str, Any] = {
        "tokens": [1, 2, 3],
        "token_begin": [0, 3],
        "start": [0],
        "pages": [[0]],
        "masks": [0],
        "logit_rows": [2],
    }
    return Step(**{name: np.array(value, np.int32) for name, value in (parts | change).items()})


def logits(native: Decoder, mask: int) -> np.ndarray:
    out = np.zeros((1, VOCAB), np.float32)
    assert native.step(step(masks=[mask]), out) == 1
    return out


def test_what_is_given_stays_alive_as_long_as_the_decoder_needs_it() -> None:
    native = decoder()
    base = native.add_weights(weights())
    plain, patched = native.add_mask(base, []), native.add_mask(base, patches())
    expected = [logits(native, mask) for mask in (plain, patched)]
    assert (expected[0] != expected[1]).any()
    gc.collect()
    rubbish = [np.full(size, np.nan, np.float32) for size in range(4, 400)]
    for mask, before in zip((plain, patched), expected, strict=True):
        np.testing.assert_array_equal(logits(native, mask), before)
    del rubbish


def test_numbers_of_removed_weights_and_masks_are_used_again() -> None:
    native = decoder()
    first, second = native.add_weights(weights()), native.add_weights(weights(1))
    masks = [native.add_mask(first, []), native.add_mask(second, [])]
    native.remove_mask(masks[0])
    native.remove_weights(first)
    with pytest.raises(ValueError, match="mask 0 does not exist"):
        native.step(step(), np.zeros((1, VOCAB), np.float32))
    assert native.add_weights(weights(2)) == first
    assert native.add_mask(second, []) == masks[0]
    np.testing.assert_array_equal(logits(native, masks[0]), logits(native, masks[1]))


# Native objects are made when a test runs: what pytest itself holds outlives the native module.
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: {"final_norm": Norm(floats(7))}, "final_norm has 7 values, expected 8"),
        (
            lambda: {"final_norm": Norm(floats(HIDDEN), floats(7))},
            "final_norm has 7 values, expected 8",
        ),
        (
            lambda: {"ropes": [Rope(floats(3), 1.0)]},
            "inverse_frequency has 3 values, expected 2",
        ),
        (
            lambda: {"rotary_dim": DIM + 2, "ropes": [Rope(floats(3), 1.0)]},
            "rotary dimensions must be even, and within the head",
        ),
        (lambda: {"layers": [layer(rope=1)]}, "names no rope of the model"),
        (
            lambda: {"blocks": Blocks(attention_scale=1.0, wide_head_norms=True)},
            "k_norm has 4 values, expected 8",
        ),
        (lambda: {"layers": [layer(k_norm=floats(5))]}, "k_norm has 5 values, expected 4"),
        (lambda: {"layers": [layer(biases=[None] * 6)]}, "seven biases"),
        (lambda: {"layers": [layer(biases=[*[None] * 6, floats(9)])]}, "a bias has 9 values"),
        (lambda: {"vocab": VOCAB + 1}, "the head has another shape"),
        (lambda: {"embedding": np.zeros((VOCAB, 9), np.uint16)}, "embedding has another shape"),
        (
            lambda: {"head": weights()[0][0], "vocab": HEADS * DIM},
            "a head that is the embedding, is dense",
        ),
    ],
)
def test_a_model_that_does_not_fit_together_is_refused(
    change: Callable[[], dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        decoder(model(**change()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_begin": [0, 1, 3]}, "disagree on the number of sequences"),
        ({"masks": [0, 0]}, "disagree on the number of sequences"),
        ({"token_begin": [0, 2]}, "more or fewer than announced"),
        ({"pages": [[0], [0]]}, "disagree on the number of sequences"),
    ],
)
def test_a_step_whose_arrays_disagree_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        step(**change)


@pytest.mark.parametrize("wrong", [np.zeros(3, np.int64), np.zeros((3, 1), np.int32)])
def test_arrays_of_another_type_or_rank_are_refused(wrong: np.ndarray) -> None:
    fine = step()
    with pytest.raises(TypeError, match="incompatible function arguments"):
        Step(
            tokens=wrong,
            token_begin=fine.token_begin,
            start=fine.start,
            pages=fine.pages,
            masks=fine.masks,
            logit_rows=fine.logit_rows,
        )
    with pytest.raises(TypeError, match="incompatible function arguments"):
        decoder().step(fine, np.zeros((1, VOCAB), np.float64))  # a copy would swallow the logits


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": np.array([9], np.uint32)}, "beyond the layer's width"),
        ({"codes": np.array([0x60], np.uint8)}, "no placement"),
        ({"row_start": np.array([0, 1, 0, 1], np.uint32)}, "do not rise"),
        ({"row_start": np.array([0, 0, 0, 0], np.uint32)}, "do not cover"),
        ({"delta": np.zeros((2, 4), BF16)}, "do not fit together"),
    ],
)
def test_a_malformed_patch_is_refused(change: dict[str, Any], message: str) -> None:
    parts: dict[str, Any] = {
        "n": 3,
        "k": 8,
        "row_start": np.array([0, 1, 1, 1], np.uint32),
        "group": np.array([1], np.uint32),
        "codes": np.array([0x10], np.uint8),
        "delta": np.zeros((1, 4), BF16),
    }
    assert isinstance(Patch(**parts).native, PatchArrays)
    with pytest.raises(ValueError, match=message):
        _ = Patch(**parts | change).native


def test_a_page_holds_keys_and_values_of_all_layers() -> None:
    assert decoder().page_bytes == 2 * PAGE_POSITIONS * HEADS * 16 * 2  # heads are padded to 16
