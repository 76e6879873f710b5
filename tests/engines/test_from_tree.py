"""What runs on the sources of a folder runs on those, whatever is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RUNNER = Path(__file__).with_name("from_tree.py")


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "say.py").write_text("import engines, sys; print(engines.__file__, sys.argv[1:])")
    command = [sys.executable, str(RUNNER), "say.py", "--flag"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_folder_comes_before_an_editable_install(tmp_path: Path) -> None:
    native = tmp_path / "engines" / "native"
    native.mkdir(parents=True)
    for file in (native.parent / "__init__.py", native / "__init__.py", native / "_native.py"):
        file.touch()
    done = run(tmp_path)
    assert done.stdout.split() == [str(native.parent / "__init__.py"), "['--flag']"], done.stderr


def test_another_folders_module_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the native module is not built in")
