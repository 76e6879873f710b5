"""Pages of results, in Markdown as the formatter of `make lint` leaves it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.common.result_file import ResultData

WIDTH = 100

Cell = object
"""Text, a number (shown with three digits), or None for an empty cell."""


def page(title: str, about: str, result: ResultData, *parts: str) -> str:
    """A whole page: what was measured, on what, how to measure it again, and what came out.

    Args:
        title: the heading.
        about: what is compared, and how to read the numbers.
        result: the result file.
        parts: paragraphs, tables and headings, in order.
    """
    notes = ["## Notes", bullets(result["notes"])] if result.get("notes") else []
    blocks = [
        f"# {title}",
        paragraph(about),
        *parts,
        *notes,
        "## How it was measured",
        paragraph(circumstances(result)),
        commands(result["command"]),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def titled(title: str, result: ResultData) -> str:
    """The title, and of which model the result is if it says so."""
    model = result.get("model")
    return f"{title}: {model}" if model else title


def circumstances(result: ResultData) -> str:
    """Date, machine, versions, and what else the machine did."""
    machine, versions = result["machine"], result["versions"]
    parts = [
        f"{result['date'][:10]}, {machine['cores']} cores of {machine['cpu']}"
        f" ({result['machine_class']}), {machine['memory_gib']} GiB, {machine['system']}.",
        ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
    ]
    shares = [row["other_cpu_share"] for row in result["rows"] if "other_cpu_share" in row]
    share = max(shares, default=result.get("other_cpu_share"))
    if share is not None:
        parts.append(f"Other processes took at most {percent(share, 2)} of the CPU.")
    digests = {name: value for name, value in result["data_digests"].items() if len(value) == 64}
    if digests:
        shown = ", ".join(f"{name} `{digest[:16]}`" for name, digest in sorted(digests.items()))
        parts.append(f"Digests of the inputs: {shown}.")
    return " ".join(parts)


def commands(joined: str) -> str:
    """A block of shell commands, long ones over several lines."""
    lines: list[str] = []
    for command in joined.split("; "):
        words = re.sub(r" (?=--)", "\n", command).split("\n")
        line = words[0]
        for word in words[1:]:
            if len(line) + len(word) + 3 > WIDTH:
                lines.append(f"{line} \\")
                line = f"    {word}"
            else:
                line += f" {word}"
        lines.append(line)
    return "\n".join(["```sh", *lines, "```"])


def markdown_picture(result: ResultData) -> str:
    """The picture that was drawn of a result, if one was."""
    name = result.get("picture")
    return f"![{name.rpartition('.')[0]}]({name})" if name else ""


def paragraph(text: str) -> str:
    """Text in lines of at most `WIDTH` characters."""
    return textwrap.fill(
        " ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False
    )


def bullets(items: Iterable[str]) -> str:
    """A list."""
    return "\n".join(
        textwrap.fill(
            f"- {' '.join(item.split())}",
            WIDTH,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for item in items
    )


def shortened(items: Sequence[str], most: int = 5) -> list[str]:
    """The first items of a long list, and how many more there are."""
    rest = len(items) - most
    return [*items[:most], *([f"and {rest} more"] if rest > 0 else [])]


def markdown_table(
    headings: Sequence[str], rows: Iterable[Sequence[Cell]], *, text: int = 1
) -> str:
    """A table whose first `text` columns are text and whose others are numbers."""
    numbers = len(headings) - text
    lines = [_line(headings), _line([*["--"] * text, *["-:"] * numbers])]
    return "\n".join([*lines, *(_line([_text(cell) for cell in row]) for row in rows)])


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, thousands with commas; empty for None."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    whole = abs(value) >= 10 ** (digits - 1)
    return f"{value:,.0f}" if whole else f"{value:#.{digits}g}".rstrip(".")


def percent(share: float | None, digits: int = 3) -> str:
    """A share as a percentage with at most so many digits; empty for None."""
    if share is None:
        return ""
    value = 100 * share
    return f"{value:,.0f} %" if value >= 10 ** (digits - 1) else f"{value:.{digits}g} %"


def changed_groups(share: float | None) -> str:
    """A share of changed groups, which results hold with five decimals; empty for None."""
    return "< 0.001 %" if share == 0 else percent(share)


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return number(cell)
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
