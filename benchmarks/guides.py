"""The tables of results and options that guides show, written by `twofour bench pages`.

A guide marks where one goes, and it is replaced whenever pages are written:

    <!-- begin results/kernels.json -->
    ...
    <!-- end results/kernels.json -->

`options/CLASS` in the place of a result's file names a class of options (`OPTIONS`), and
`families/engines` is the table of model families and what runs them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from pkgutil import resolve_name

from pydantic.fields import FieldInfo

from benchmarks.clients.page import clients_table
from benchmarks.common.page import markdown_table
from benchmarks.common.result_file import RESULTS, ResultData, read_result
from benchmarks.engine.pages import quality_table, speed_table
from benchmarks.families import families_table, family_rows
from benchmarks.kernels.page import speedup_table
from benchmarks.masks.pages import cost_table, domains_table, league_table
from benchmarks.masks.permutation_page import permutation_table
from benchmarks.masks.products_page import products_table
from benchmarks.overhead.page import overhead_table
from benchmarks.serve.page import serve_table
from benchmarks.sizing.page import sizing_table
from benchmarks.vllm.pages import summary_table
from engines.option_flags import default_text
from engines.registry import TARGETS
from maskgen.format.atomic_file import write_text

_LARGE_WEIGHTS = 8_000_000
_MARKED = re.compile(
    r"(<!-- begin ((?:results|options|families)/[\w.-]+) -->\n).*?(\n<!-- end \2 -->)", re.DOTALL
)


def _engine(result: ResultData) -> str:
    """The first of its lengths."""
    first = result["rows"][0]
    lengths = (first["prompt_tokens"], first["output_tokens"])
    rows = [r for r in result["rows"] if (r["prompt_tokens"], r["output_tokens"]) == lengths]
    return speed_table(rows)


def _kernels(result: ResultData) -> str:
    """The best instruction set on all cores, for layers that do not fit a cache."""
    threads = max(row["threads"] for row in result["rows"])
    rows = [r for r in result["rows"] if r["threads"] == threads]
    return speedup_table(
        [r for r in rows if r["isa"] == rows[0]["isa"] and r["n"] * r["k"] > _LARGE_WEIGHTS]
    )


TABLES: Mapping[str, Callable[[ResultData], str]] = {
    "bench-engine": _engine,
    "bench-vllm": lambda result: summary_table(result["summary"]),
    "clients": lambda result: clients_table(result["rows"]),
    "domains": lambda result: domains_table(result["rows"]),
    "kernels": _kernels,
    "mask-cost": lambda result: cost_table(result["rows"]),
    "masks": lambda result: league_table(result["rows"]),
    "overhead": lambda result: overhead_table(result["rows"]),
    "permutation": lambda result: permutation_table(result["rows"]),
    "products": lambda result: products_table(result["rows"]),
    "quality": lambda result: quality_table(result["rows"]),
    "serve": lambda result: serve_table(result["rows"]),
    "sizing": sizing_table,
}
"""Name of a result -> its table for a guide."""


OPTIONS: Mapping[str, str] = {
    kind.rpartition(":")[2]: kind
    for entry in TARGETS.values()
    for kind in (entry.options, entry.settings)
    if kind is not None
} | {
    "ServerSettings": "serving.config:ServerSettings",
    "ValueOptions": "engines.quantisation.options:ValueOptions",
}
"""Name of a class of options -> `module:Class`."""


def options_table(name: str) -> str:
    """Each option of a class, its default and what it means.

    Raises:
        ValueError: there is no such class.
    """
    if name not in OPTIONS:
        raise ValueError(f"no options are known as {name}; there are {', '.join(OPTIONS)}")
    fields: dict[str, FieldInfo] = resolve_name(OPTIONS[name]).model_fields
    rows = [
        [f"`{option}`", default_text(field) or "none", field.description]
        for option, field in fields.items()
        if not field.is_required()
    ]
    return markdown_table(["option", "default", "meaning"], rows, text=3)


def fill(text: str, results: Path = RESULTS) -> str:
    """A guide with its tables as the result files have them.

    Raises:
        ValueError: it asks for a result that has no table.
    """

    def table(marked: re.Match[str]) -> str:
        folder, _, file = marked[2].partition("/")
        if folder == "families":
            return f"{marked[1]}\n{families_table(family_rows())}\n{marked[3]}"
        if folder == "options":
            return f"{marked[1]}\n{options_table(file)}\n{marked[3]}"
        name = file.removesuffix(".json")
        if name not in TABLES:
            raise ValueError(f"no table is known for {name}; there are {', '.join(TABLES)}")
        shown = TABLES[name](read_result(results / f"{name}.json"))
        return f"{marked[1]}\n{shown}\n{marked[3]}"

    return _MARKED.sub(table, text)


def fill_guides(root: Path) -> list[Path]:
    """Fill the guides below `root` (README.md and docs/*.md); gives those that changed."""
    changed = []
    for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        before = path.read_text(encoding="utf-8")
        after = fill(before, root / RESULTS)
        if after != before:
            write_text(path, after)
            changed.append(path)
    return changed
