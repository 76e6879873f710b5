"""Imports point one way, and the core starts without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("maskgen", "engines", "evaluation", "serving", "loadtests", "benchmarks", "twofour")
ALLOWED = {
    "maskgen": {"maskgen"},
    "engines": {"engines", "maskgen.format"},
    "evaluation": {"evaluation", "engines", "maskgen"},
    "serving": {"serving", "engines"},
    "loadtests": {"loadtests"},
    "benchmarks": set(OURS) - {"twofour"},
    "twofour": set(OURS),
}


def _imported_modules(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            # `from maskgen import maskfile` names the module in the alias.
            if node.module in OURS:
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return {name for name in found if name.split(".")[0] in OURS}


@pytest.mark.parametrize("folder", OURS)
def test_imports_point_one_way(folder: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for module in _imported_modules(path)
        if not any(module == a or module.startswith(f"{a}.") for a in ALLOWED[folder])
    ]
    assert not wrong


def test_rooms_of_the_benchmarks_share_only_what_is_common() -> None:
    rooms = [path.name for path in (ROOT / "benchmarks").iterdir() if path.is_dir()]
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for room in rooms
        for path in sorted((ROOT / "benchmarks" / room).rglob("*.py"))
        for module in _imported_modules(path)
        if module.startswith("benchmarks.") and module.split(".")[1] not in (room, "common")
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
        for folder in OURS
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    } - set(OURS)
    ours = [path for folder in OURS for path in (ROOT / folder).rglob("*.py")]
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
