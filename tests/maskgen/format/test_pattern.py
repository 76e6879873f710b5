"""N:M as a value: what is one, how it is written, what follows from it."""

from __future__ import annotations

import math

import pytest

from maskgen.format.pattern import TWO_FOUR, Pattern, PatternError


@pytest.mark.parametrize("text", ["1:4", "2:4", "4:8", "8:16", "16:32", "31:32", "1:2"])
def test_text_and_back(text: str) -> None:
    assert str(Pattern.parse(text)) == text


def test_what_follows_from_a_pattern() -> None:
    assert Pattern.parse("2:4") == TWO_FOUR
    counts = {"1:4": 4, "2:4": 6, "4:8": 70, "8:16": 12870, "16:32": 601080390}
    for text, count in counts.items():
        pattern = Pattern.parse(text)
        assert pattern.placements == count
        assert pattern.entropy == pytest.approx(math.log2(count) / pattern.m)
    assert Pattern(1, 4).density == 0.25


@pytest.mark.parametrize(
    "text", ["", "2", "2:", ":4", "2:4:8", "a:b", " 2:4", "02:4", "-1:4", "2:999"]
)
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(PatternError, match="expected N:M, such as 2:4"):
        Pattern.parse(text)


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (5, 4), (16, 64), (1, 33)])
def test_patterns_that_are_out_of_bounds(n: int, m: int) -> None:
    with pytest.raises(PatternError, match=f"{n}:{m} is not a pattern: .* <= 32"):
        Pattern(n, m)
