"""Another environment's Python is shown the benchmarks alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.common import foreign_python

MODULE = """
import importlib.util, json, sys
import wave
from benchmarks.common.waves import Wave
def main(*arguments):
    found = [importlib.util.find_spec(name) is not None for name in ("maskgen", "numpy")]
    print(json.dumps([arguments, found, wave.__file__, Wave(1, 2, 3).concurrency]))
"""


def test_it_sees_this_package_and_nothing_around_it(tmp_path: Path) -> None:
    package = tmp_path / "around" / "benchmarks"
    shutil.copytree(Path(foreign_python.__file__).parents[1], package)
    (tmp_path / "around" / "maskgen.py").touch()
    (package / "probe.py").write_text(MODULE)
    (package / "common" / "wave.py").write_text("raise ImportError")  # the standard library's name
    command = foreign_python.foreign_command(Path(sys.executable), "benchmarks.probe", "a", "b")
    script = command.index(foreign_python.__file__)
    command[script] = str(package / "common" / "foreign_python.py")
    # -S: without the packages that are installed here; -E: nor what the environment adds.
    command[1:1] = ["-S", "-E"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    arguments, found, wave, concurrency = json.loads(done.stdout)
    assert arguments == ["a", "b"]
    assert found == [False, False]
    assert "around" not in wave
    assert concurrency == 3
