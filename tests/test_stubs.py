"""The committed stubs of the native modules are what the modules themselves say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("module", "stubs"),
    [
        (
            "engines.native._native",
            ["_native/__init__.pyi", "_native/decoder.pyi", "_native/kernels.pyi"],
        ),
        ("maskgen._native", ["_native.pyi"]),
    ],
)
def test_stubs_are_up_to_date(module: str, stubs: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-i", ROOT, "-m", module, "-r"]
    subprocess.run([*command, "-O", tmp_path], check=True)
    made = {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*.pyi")}
    package = ROOT / module.replace(".", "/").removesuffix("/_native")
    assert made == {stub: (package / stub).read_text() for stub in stubs}, "run `make stubs`"
