"""Comparing masks, against definitions spelt out weight by weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskgen.compare import compare, ordered, summarise_layers
from maskgen.format.mask import MaskFileError
from maskgen.format.pattern import Pattern
from maskgen.plots import plot_difference, plot_placements
from tests.maskgen.masks import changed_mask, random_mask, sha
from tests.maskgen.patterns import PATTERNS


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_comparison_counts_groups_and_kept_weights(pattern: Pattern) -> None:
    other = random_mask(0, pattern=pattern)
    mask = changed_mask(other, 0.5)
    rows, total = compare(mask, other)
    assert [row.name for row in rows] == ordered(mask)
    changed = kept = both = 0
    for row in rows:
        own, given = mask.codes[row.name], other.codes[row.name]
        changed += int((own != given).sum())
        mine, theirs = mask.keep(row.name), other.keep(row.name)
        kept += int(mine.sum())
        both += int((mine & theirs).sum())
        assert row.agreement == pytest.approx((mine & theirs).sum() / mine.sum())
        assert row.changed_share == pytest.approx((own != given).mean())
    assert (total.changed, total.agreement) == (changed, pytest.approx(both / kept))
    assert total.entropy == pytest.approx(sum(row.entropy for row in rows))
    assert total.bits_per_weight == pytest.approx(total.entropy / mask.weights)


def test_a_mask_beside_itself_differs_in_nothing() -> None:
    rows, total = compare(random_mask(1), random_mask(1))
    assert all(row.changed == 0 and row.agreement == 1 and row.entropy == 0 for row in rows)
    assert total.changed == 0


def test_masks_that_cannot_be_compared() -> None:
    mask = random_mask(0)
    with pytest.raises(MaskFileError, match="different models"):
        compare(mask, random_mask(0, base_digest=sha("x")))
    with pytest.raises(MaskFileError, match="different patterns: 2:4 and 4:8"):
        compare(mask, random_mask(0, pattern=Pattern(4, 8)))
    with pytest.raises(MaskFileError, match="only one of them lists model"):
        compare(mask, random_mask(0, {"model.layers.0.mlp.up_proj": (4, 4)}))
    with pytest.raises(MaskFileError, match="shapes differ"):
        compare(mask, random_mask(0, dict.fromkeys(mask.codes, (4, 4))))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_summary_counts_placements_and_places(pattern: Pattern) -> None:
    mask = random_mask(0, pattern=pattern)
    for row in summarise_layers(mask):
        codes = mask.codes[row.name]
        assert row.density == pattern.density
        few = range(pattern.placements if pattern.placements <= 6 else 0)
        assert row.placements == tuple((codes == code).mean() for code in few)
        groups = mask.keep(row.name).reshape(-1, pattern.m)
        assert row.places == pytest.approx([groups[:, i].mean() for i in range(pattern.m)])
        assert sum(row.places) == pytest.approx(pattern.n)


def test_layers_are_ordered_as_numbers() -> None:
    names = [f"model.layers.{i}.mlp.up_proj" for i in (10, 9, 2)]
    mask = random_mask(0, dict.fromkeys(names, (4, 4)))
    assert ordered(mask) == [names[2], names[1], names[0]]


def test_pictures_are_written(tmp_path: Path) -> None:
    other = random_mask(0)
    mask = changed_mask(other, 0.5)
    plot_difference(tmp_path / "d.png", compare(mask, other)[0], "difference")
    for pattern in PATTERNS:
        rows = summarise_layers(random_mask(0, pattern=pattern))
        plot_placements(tmp_path / "p.svg", pattern, rows, "placements")
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "p.svg").read_bytes()
    with pytest.raises(ValueError, match="xyz"):
        plot_difference(tmp_path / "d.xyz", compare(mask, other)[0], "difference")
    assert np.isfinite(compare(mask, other)[1].entropy)
