"""The entropy-coded difference: its size, and that its bytes mean what docs/formats.md says."""

from __future__ import annotations

import numpy as np
import pytest

from maskgen.format import difference as delta
from tests.maskgen.masks import changed_mask, random_mask

SHAPES = {f"layers.{i}": (96 + 32 * i, 256) for i in range(6)}


def entropy(codes: dict[str, np.ndarray], parent: dict[str, np.ndarray]) -> float:
    """Bits of the codes given layer and parent code, straight from the definition."""
    bits = 0.0
    for name in codes:
        for given in range(6):
            own = codes[name][parent[name] == given]
            for code in range(6):
                count = int((own == code).sum())
                bits -= count * np.log2(count / own.size) if count else 0
    return bits


def read_by_the_specification(
    difference: delta.Difference, parent: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], int]:
    """An ANS reader in a few lines of integer arithmetic, as docs/formats.md describes it."""
    words = difference.words.tolist()
    state = 0
    for _ in range(2):
        if words:
            state = state << 32 | words.pop()
    codes = {}
    for name, table in zip(sorted(parent), difference.table_of_layer.tolist(), strict=True):
        own = np.empty_like(parent[name])
        for given in range(6):
            frequencies = difference.tables[table, given].tolist()
            for place in np.argwhere(parent[name] == given):
                low = state & 0xFFFFFF
                code, start = 0, 0
                while start + frequencies[code] <= low:
                    start += frequencies[code]
                    code += 1
                state = (state >> 24) * frequencies[code] + low - start
                if state < 1 << 32 and words:
                    state = state << 32 | words.pop()
                own[tuple(place)] = code
        codes[name] = own
    return codes, state


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
def test_an_independent_reader_gets_the_same_codes(share: float) -> None:
    parent = random_mask(0, SHAPES)
    child = changed_mask(parent, share)
    difference = delta.encode(child.codes, parent.codes)
    by_hand, state = read_by_the_specification(difference, dict(parent.codes))
    assert state == 0
    decoded = delta.decode(difference, parent.codes)
    for name in SHAPES:
        assert np.array_equal(by_hand[name], child.codes[name])
        assert np.array_equal(decoded[name], child.codes[name])


def test_conditional_entropy_matches_its_definition() -> None:
    parent = random_mask(0, SHAPES)
    child = changed_mask(parent, 0.2)
    counts = [delta.transition_counts(child.codes[n], parent.codes[n]) for n in SHAPES]
    expected = entropy(dict(child.codes), dict(parent.codes))
    assert delta.conditional_entropy(np.stack(counts)) == pytest.approx(expected)


@pytest.mark.parametrize("share", [0.002, 0.004, 0.05, 0.2])
def test_size_is_within_five_per_cent_of_the_conditional_entropy(share: float) -> None:
    rng = np.random.default_rng(0)
    shapes = {f"layers.{i}": (1024, 4096) for i in range(8)}
    parent = random_mask(0, shapes)
    # Every layer changes at its own rate, as learned masks do.
    child = {
        name: changed_mask(parent, share * float(rng.uniform(0.3, 3))).codes[name]
        for name in shapes
    }
    difference = delta.encode(child, parent.codes)
    stored = sum(
        array.nbytes for array in (difference.words, difference.tables, difference.table_of_layer)
    )
    assert stored * 8 <= 1.05 * entropy(child, dict(parent.codes))


def test_tables_hold_positive_integers_that_sum_to_two_to_the_24() -> None:
    parent = random_mask(0, SHAPES)
    tables = delta.encode(changed_mask(parent, 0.1).codes, parent.codes).tables
    assert (tables > 0).all()
    assert (tables.sum(axis=-1) == 1 << 24).all()


def test_more_layers_than_tables() -> None:
    rng = np.random.default_rng(0)
    shapes = {f"layers.{i}": (64, 256) for i in range(300)}
    parent = random_mask(0, shapes)
    # Strongly different layers, so that sharing is forced and not chosen.
    child = {name: rng.permutation(6).astype(np.uint8)[parent.codes[name]] for name in shapes}
    difference = delta.encode(child, parent.codes)
    assert len(difference.tables) <= delta.MAX_TABLES
    decoded = delta.decode(difference, parent.codes)
    assert all(np.array_equal(decoded[name], child[name]) for name in shapes)


def replace(difference: delta.Difference, **changes: np.ndarray) -> delta.Difference:
    fields = {
        "words": difference.words,
        "tables": difference.tables,
        "table_of_layer": difference.table_of_layer,
    }
    return delta.Difference(**{**fields, **changes})


def test_a_difference_that_does_not_fit_is_refused() -> None:
    parent = random_mask(0, SHAPES)
    good = delta.encode(changed_mask(parent, 0.1).codes, parent.codes)
    unbalanced = good.tables.copy()
    unbalanced[0, 0, 0] += 1
    zero = good.tables.copy()
    zero[0, 0] = [1 << 24, 0, 0, 0, 0, 0]
    cases = [
        ({"tables": unbalanced}, "does not sum"),
        ({"tables": zero}, "does not sum"),
        ({"tables": good.tables[0]}, "tables of shape"),
        ({"tables": good.tables[:0]}, "tables of shape"),
        ({"table_of_layer": good.table_of_layer[:-1]}, "covers 5 layers, its parent has 6"),
        ({"table_of_layer": np.full(6, 200, np.uint8)}, "not there"),
        ({"words": good.words[1:]}, "does not end"),
        ({"words": np.append(good.words, np.uint32(0))}, "Invalid compressed data"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            delta.decode(replace(good, **changes), parent.codes)
