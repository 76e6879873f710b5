"""How long work tells what it is doing."""

from __future__ import annotations

from collections.abc import Callable

BuildProgress = Callable[[str, int, int], None]
"""Called with (what is being done, steps done, steps in all), from any thread."""


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody."""
