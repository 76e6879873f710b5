"""Reads from TensorRT's log which layers could use a sparse tactic and which really do.

TensorRT 8 lists both sets of layers by name; TensorRT 10 counts them. A builder may select tactics
in several passes, each with its own pair of lines; the last pair belongs to the finished engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

_COUNTED = {
    "eligible": re.compile(r"\(Sparsity\) Found (\d+) layer\(s\) eligible to use sparse tactics"),
    "chosen": re.compile(r"\(Sparsity\) Chose (\d+) layer\(s\) using sparse tactics"),
}
_LISTED = {
    "eligible": re.compile(r"\(Sparsity\) Layers eligible for sparse math:(.*)"),
    "chosen": re.compile(
        r"\(Sparsity\) TRT inference plan picked sparse implementation for layers:(.*)"
    ),
}
# TensorRT-LLM's own line after each rank's engine.
_RANK_DONE = re.compile(r"Total time of building (?!all engines)")
_REFUSED_REFIT = re.compile(
    r"\(Refit \+ Sparsity\): Refitting failed|\(Sparsity\) Please provide sparse weights"
)


@dataclass(frozen=True, slots=True)
class TacticCount:
    """Layers of one engine that could use a sparse tactic, and that use one; None: not said."""

    eligible: int | None = None
    chosen: int | None = None


@dataclass(frozen=True, slots=True)
class SparsityReport:
    """What a build log says.

    Attributes:
        ranks: one count per engine whose lines could be told apart, in the order of the log.
        refit_refused: TensorRT refused to put dense weights into a sparse layer.
    """

    ranks: tuple[TacticCount, ...]
    refit_refused: bool = False

    @property
    def reported(self) -> bool:
        """Whether the log says anything about the chosen tactics at all."""
        return any(rank.chosen is not None for rank in self.ranks)

    @property
    def eligible(self) -> int:
        """Eligible layers of all engines together."""
        return sum(rank.eligible or 0 for rank in self.ranks)

    @property
    def chosen(self) -> int:
        """Layers of all engines together that use a sparse tactic."""
        return sum(rank.chosen or 0 for rank in self.ranks)


def parse_log(lines: Iterable[str]) -> SparsityReport:
    """Read a build or refit log of either generation.

    Returns:
        The counts of the last pass of every rank. Ranks that were built at the same time
        (`--workers` above 1) cannot be told apart: their lines then count for whichever rank
        finished next, and only the sums are meaningful.
    """
    ranks: list[TacticCount] = []
    current = TacticCount()
    refused = False
    for line in lines:
        current = _read_line(line, current)
        refused = refused or _REFUSED_REFIT.search(line) is not None
        if _RANK_DONE.search(line):
            ranks.append(current)
            current = TacticCount()
    if current != TacticCount():
        ranks.append(current)
    return SparsityReport(tuple(ranks), refused)


def _read_line(line: str, current: TacticCount) -> TacticCount:
    if "(Sparsity)" not in line:
        return current
    for field, pattern in _COUNTED.items():
        if match := pattern.search(line):
            return replace(current, **{field: int(match[1])})
    for field, pattern in _LISTED.items():
        if match := pattern.search(line):
            return replace(current, **{field: len(_names(match[1]))})
    return current


def _names(text: str) -> list[str]:
    """Layer names, comma-separated; a comma inside brackets belongs to a name."""
    flat = re.sub(r"[\[({][^\])}]*[\])}]", "", text)
    return [name for name in flat.split(",") if name.strip()]
