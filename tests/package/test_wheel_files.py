"""What the wheel holds, and that the image is built from the same files."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]
PACKAGES = set(BUILD["wheel"]["packages"])
(WHEEL_ONLY,) = BUILD["overrides"]
MASKS = WHEEL_ONLY["wheel"]["force-include"]["masks"]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Files of a wheel that was built without its native modules, which takes a second."""
    out = tmp_path_factory.mktemp("wheel")
    options = {"wheel.cmake": "false", "build-dir": str(out / "build")}
    hook = f"from scikit_build_core.build import build_wheel as b; b({str(out)!r}, {options!r})"
    done = subprocess.run(
        [sys.executable, "-c", hook], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def tracked(folder: str) -> set[str]:
    """Files below a folder that git knows or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", folder]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


def test_every_package_is_in_it_and_nothing_else(names: set[str]) -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == PACKAGES
    expected = {
        name for folder in PACKAGES for name in tracked(folder) if "csrc" not in name.split("/")
    }
    expected |= {f"twofour/{name}" for name in tracked("masks")}
    found = {name for name in names if ".dist-info/" not in name}
    assert found == expected


def test_what_its_users_need_is_in_it(names: set[str]) -> None:
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {"benchmarks/serve/compare.py", "loadtests/locustfile.py"} <= names, "for the demo"
    shipped = ("general", "python", "transform")
    assert {f"{MASKS}/smollm2-135m-free/{name}.safetensors" for name in shipped} <= names
    endings = {Path(name).suffix for name in names}
    assert not endings & {".cpp", ".h", ".so", ".pyc", ".png"}
    assert not any(name.startswith(("tests/", "docs/")) for name in names)


def test_the_image_is_built_from_the_same_files() -> None:
    stage = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.M)[1]
    assert stage.split()[2] == "wheel"
    copies = [line.split()[1:] for line in stage.splitlines() if line.startswith("COPY ")]
    folders = {source for *sources, target in copies for source in sources if source == target}
    files = {source for *sources, target in copies for source in sources if target == "./"}
    assert folders == PACKAGES | {"masks"}
    assert files == {"pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"}
