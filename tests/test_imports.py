"""Imports point one way, and the core starts without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter

import pytest

from tests import import_map
from tests.import_map import PARTS, ROOT, grouped, module_graph, room

ALLOWED = {
    "maskgen": {"maskgen"},
    "engines": {"engines", "maskgen.format"},
    "evaluation": {"evaluation", "engines", "maskgen"},
    "serving": {"serving", "engines"},
    "loadtests": {"loadtests"},
    "benchmarks": set(PARTS) - {"twofour", "deploy"},
    "twofour": set(PARTS) - {"deploy"},
    "deploy": {"deploy", "serving", "engines"},
}


@pytest.mark.parametrize("part", PARTS)
def test_imports_point_one_way(part: str) -> None:
    wrong = [
        f"{importer} imports {imported}"
        for importer, found in module_graph().items()
        if import_map.part(importer) == part
        for imported in sorted(found)
        if not any(imported == a or imported.startswith(f"{a}.") for a in ALLOWED[part])
    ]
    assert not wrong


@pytest.mark.parametrize("group", [str, room])
def test_no_circles_between_modules_or_rooms(group: Callable[[str], str]) -> None:
    try:
        TopologicalSorter(grouped(group)).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' <- '.join(error.args[1])}")


def test_the_map_shows_the_imports() -> None:
    page = import_map.PAGE.read_text(encoding="utf-8")
    assert page == import_map.with_map(page), "draw it anew: python -m tests.import_map"


def test_rooms_of_the_benchmarks_share_only_what_is_common() -> None:
    wrong = [
        f"{importer} imports {imported}"
        for importer, found in grouped(import_map.folder).items()
        if importer.startswith("benchmarks.")
        for imported in sorted(found)
        if imported.startswith("benchmarks") and imported != "benchmarks.common"
    ]
    assert not wrong


def test_commands_share_no_private_helpers() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {alias.name} from {node.module}"
        for path in sorted((ROOT / "twofour").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name.startswith("_") and node.module != "__future__"
    ]
    assert not wrong


def test_no_module_takes_the_name_of_a_package() -> None:
    # A module beside a script is found before the package of that name.
    foreign = {
        name.split(".")[0]
        for folder in PARTS
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    } - set(PARTS)
    ours = [path for folder in PARTS for path in (ROOT / folder).rglob("*.py")]
    assert [str(path.relative_to(ROOT)) for path in ours if path.stem in foreign] == []


@pytest.mark.parametrize(
    "statement",
    [
        "import serving.app",
        "import twofour.cli",
        "import twofour; assert 'engines' not in sys.modules; twofour.LLM, twofour.SamplingParams",
        "import engines.base, engines.registry, engines.cpu.engine",
        "import maskgen.format.mask_file, maskgen.format.model_directory, maskgen.apply",
    ],
)
def test_the_core_imports_neither_torch_nor_transformers(statement: str) -> None:
    check = "bad = {'torch', 'transformers', 'vllm'} & set(sys.modules); assert not bad"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {statement}; {check}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_help_lists_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "twofour.cli", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for command in ("demo", "data", "mask", "eval", "build", "serve", "info", "bench", "transform"):
        assert command in done.stdout
