"""N:M, the pattern of a mask: of every M consecutive inputs of a linear layer it keeps N."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

MAX_GROUP = 32
"""The largest M: a code then fits 32 bits, and the shares of a difference 24 (`swaps`)."""

_TEXT = re.compile(r"([1-9][0-9]?):([1-9][0-9]?)")


class PatternError(ValueError):
    """No pattern, or one that twofour has no masks for."""


@dataclass(frozen=True, slots=True, order=True)
class Pattern:
    """N of M.

    Attributes:
        n: weights that are kept in a group.
        m: weights in a group, consecutive along the input dimension.

    Raises:
        PatternError: not 1 <= n < m <= 32.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m <= MAX_GROUP:
            raise PatternError(
                f"{self.n}:{self.m} is not a pattern: N:M takes 1 <= N < M <= {MAX_GROUP}"
            )

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """`16:32` as a pattern.

        Raises:
            PatternError: the text is none.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise PatternError(f"{text!r:.40} is not a pattern; expected N:M, such as 2:4 or 16:32")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def placements(self) -> int:
        """How many ways there are to keep n of m."""
        return math.comb(self.m, self.n)

    @property
    def density(self) -> float:
        """Share of the weights that is kept."""
        return self.n / self.m

    @property
    def entropy(self) -> float:
        """Bits per weight of a placement if all are equally likely: log2(placements) / m."""
        return math.log2(self.placements) / self.m


TWO_FOUR = Pattern(2, 4)
