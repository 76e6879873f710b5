"""Patterns for the tests of this folder."""

from __future__ import annotations

from hypothesis import strategies as st

from maskgen.format.pattern import Pattern

PATTERNS = tuple(Pattern(n, m) for n, m in ((1, 4), (2, 4), (4, 8), (8, 16), (16, 32)))
"""Those of the literature."""

any_pattern = st.one_of(
    st.sampled_from(PATTERNS),
    st.integers(2, 32).flatmap(lambda m: st.builds(Pattern, st.integers(1, m - 1), st.just(m))),
)
