"""The committed stubs of the native modules are what the modules themselves say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("folder", ["engines/native", "maskgen"])
def test_stubs_are_up_to_date(folder: str, tmp_path: Path) -> None:
    module = f"{folder.replace('/', '.')}._native"
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-i", ROOT, "-m", module, "-r"]
    subprocess.run([*command, "-O", tmp_path], check=True)
    made = {str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*.pyi")}
    # One file, never a folder: that would hide the compiled module from editable installs.
    assert made == {"_native.pyi": (ROOT / folder / "_native.pyi").read_text()}, "run `make stubs`"
    assert not (ROOT / folder / "_native").exists()
