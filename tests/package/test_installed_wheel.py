"""The wheel in an empty environment, where there is neither compiler nor checkout.

Builds an engine of a tiny model, serves it, and asks it; needs `make package` and a package index.
"""

from __future__ import annotations

import json
import os
import subprocess
import venv
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.engines.conftest import random_mask
from tests.serving.conftest import start_process
from tests.tiny_model import make_tiny_llama

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.package, pytest.mark.timeout(1200)]


@dataclass
class Installation:
    """An environment that has the wheel and what it depends on; a folder to work in."""

    bin: Path
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """This process's, with nothing on the path but the installation."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
        return {**kept, "PATH": str(self.bin)}

    def run(self, *command: str) -> str:
        """Standard output of a command that must succeed."""
        done = subprocess.run(
            [self.bin / command[0], *command[1:]],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    wheels = sorted((ROOT / "dist").glob("twofour-*.whl"))
    assert len(wheels) == 1, "make package builds the wheel"
    root = tmp_path_factory.mktemp("installed")
    venv.create(root / "venv", with_pip=True)
    (root / "work").mkdir()
    installation = Installation(root / "venv" / "bin", root / "work")
    pip = ["python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    installation.run(*pip, "--only-binary=:all:", str(wheels[0]))
    return installation


@pytest.fixture(scope="module")
def engine(installed: Installation) -> Path:
    model = make_tiny_llama(installed.folder / "model")
    random_mask(model, installed.folder / "general.safetensors")
    random_mask(model, installed.folder / "other.safetensors", seed=1)
    masks = ["--mask", "general=general.safetensors", "--mask", "other=other.safetensors"]
    said = installed.run("twofour", "build", "--model", "model", *masks, "--out", "engine")
    assert "masks general, other" in said
    return installed.folder / "engine"


def test_it_runs_from_its_own_files(installed: Installation) -> None:
    facts = json.loads(installed.run("twofour", "info", "--json").splitlines()[-1])
    assert facts["versions"]["torch"] == "not installed"
    assert facts["versions"]["twofour"] != "not installed"
    masks = Path(facts["masks"]["folder"])
    assert masks.is_relative_to(installed.bin.parent)
    said = installed.run("twofour", "mask", "inspect", str(masks / "python.safetensors"), "--json")
    assert json.loads(said)["domain"] == "python"
    where = "import engines, maskgen._native, engines.native._native as n; print(n.__file__)"
    module = Path(installed.run("python", "-c", where).strip())
    assert module.is_relative_to(installed.bin.parent)
    needed = subprocess.run(["ldd", module], capture_output=True, text=True, check=True).stdout
    libraries = {line.split(".so")[0].split("/")[-1].strip() for line in needed.splitlines()}
    assert libraries <= {"linux-vdso", "libgomp", "libstdc++", "libm", "libgcc_s", "libc"} | {
        name for name in libraries if name.startswith("ld-linux")
    }


def test_it_serves(installed: Installation, engine: Path) -> None:
    command = [str(installed.bin / "twofour"), "serve", str(engine), "--port", "0"]
    server = start_process(command, cwd=installed.folder, environment=installed.environment)
    try:
        body = {"model": "model:other", "prompt": "The river", "max_tokens": 8, "ignore_eos": True}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    finally:
        code = server.stop()
    assert (answer.status_code, code) == (200, 0), answer.text + "".join(server.log)
    assert answer.json()["usage"]["completion_tokens"] == 8


def test_it_generates_offline(installed: Installation, engine: Path) -> None:
    program = (
        "from twofour import LLM, SamplingParams\n"
        f"with LLM({str(engine)!r}) as llm:\n"
        "    (one,) = llm.generate('The river', SamplingParams(max_tokens=8, ignore_eos=True))\n"
        "    print(len(one.outputs[0].token_ids))"
    )
    assert installed.run("python", "-c", program) == "8\n"
