"""Which of our modules imports which, and the map of it in docs/architecture.md.

`python -m tests.import_map` draws the map anew.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = (
    "maskgen", "engines", "evaluation", "serving", "loadtests", "benchmarks", "twofour", "deploy",
)  # fmt: skip
PAGE = ROOT / "docs" / "architecture.md"

Graph = dict[str, set[str]]
"""Importer -> what it imports."""

_BEGIN, _END = "<!-- begin import map -->\n", "<!-- end import map -->"
_ENTRY = re.compile(r"([a-z_0-9]+(?:\.[a-z_0-9]+)+):\w+")
"""What a registry names lazily, as in `engines.cpu.engine:CpuEngine`."""


@cache
def modules() -> dict[str, Path]:
    """Our modules and packages, by dotted name."""
    found = {}
    for part in PARTS:
        for path in sorted((ROOT / part).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


@cache
def module_graph() -> Graph:
    """Imports between modules: at the top, in functions, for types only, and lazily by name."""
    return {name: set(_imports(path)) - {name} for name, path in modules().items()}


def room(module: str) -> str:
    """A folder of a part, or a file beside its folders: `engines.cpu`, `engines.base`."""
    return ".".join(module.split(".")[:2])


def folder(module: str) -> str:
    """As `room`, but all files beside the folders of a part are one: `engines`."""
    return room(module) if (ROOT / room(module).replace(".", "/")).is_dir() else part(module)


def part(module: str) -> str:
    """`engines` of `engines.cpu.loop`."""
    return module.split(".")[0]


def grouped(group: Callable[[str], str]) -> Graph:
    """The module graph with every module replaced by its group."""
    graph: Graph = {}
    for importer, imported in module_graph().items():
        graph.setdefault(group(importer), set()).update(map(group, imported))
    return {name: found - {name} for name, found in graph.items()}


def drawn_map() -> str:
    """Mermaid: the folders, without arrows that follow from others or stay within a part's top."""
    graph = grouped(folder)
    graph = {
        name: {other for other in found if part(name) != other and part(other) != name}
        for name, found in graph.items()
    }
    below: Graph = {}
    for name in TopologicalSorter(graph).static_order():
        below[name] = set().union(*(below[other] | {other} for other in graph.get(name, ())))
    lines = [
        f"    {name.replace('.', '/')} --> {other.replace('.', '/')}"
        for name, found in sorted(graph.items())
        for other in sorted(found)
        if not any(other in below[between] for between in found)
    ]
    return "\n".join(["```mermaid", "graph TD", *lines, "```", ""])


def with_map(page: str) -> str:
    """The page's text with the map of now."""
    before, _, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        raise ValueError(f"{PAGE} lacks the lines {_BEGIN.strip()} and {_END}")
    return f"{before}{_BEGIN}\n{drawn_map()}\n{_END}{after}"


def _imports(path: Path) -> Iterator[str]:
    ours = modules()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in ours)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module in ours:
            # `from maskgen.texts import windows` names the module in the alias.
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in ours else node.module
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            entry = _ENTRY.fullmatch(node.value)
            if entry and entry[1] in ours:
                yield entry[1]


if __name__ == "__main__":
    PAGE.write_text(with_map(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
