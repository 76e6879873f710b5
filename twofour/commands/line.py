"""A line of a command's answer, whole: not wrapped to the terminal, not coloured."""

from __future__ import annotations

from rich.console import Console


def say(console: Console, line: str) -> None:
    """Print one line as it is."""
    console.print(line, highlight=False, soft_wrap=True)
