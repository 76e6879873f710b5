"""A real server, and client programs that run in environments of their own.

`make test-clients` sets the environments up. The engine is SmolLM2-135M under its learned mask;
TWOFOUR_CLIENTS_ENGINE names a directory that was built before, to save half a minute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from tests.clients.answers import (
    CHAT,
    COMPLETIONS,
    RESPONSES,
    check_calls,
    check_streams,
    check_usage,
)
from tests.clients.tee import Exchange, Tee
from tests.serving.conftest import ROOT, ServerProcess, start_process

HERE = Path(__file__).parent
MODEL = "smollm2-135m"
MASKS = ROOT / "masks/smollm2-135m-free"
TIMEOUT_S = 600

# The network is ours alone: nothing that a client would report or look up elsewhere.
QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "OPENAI_API_KEY": "none-needed",
}


# Environments that are not called `.venv-clients-<group>`.
HOMES = {"npm": HERE / "npm", "guidellm": ROOT / ".venv-guidellm"}


@dataclass(frozen=True)
class Client:
    """A client program.

    Attributes:
        name: of its package.
        group: of packages that share an environment.
        script: its scenarios, in `scenarios/` or `npm/`; empty for a program of its own.
        without: variables of the environment that it gets otherwise.
    """

    name: str
    group: str
    script: str = ""
    without: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """Of its processes."""
        given = os.environ | QUIET
        return {name: value for name, value in given.items() if name not in self.without}

    @property
    def home(self) -> Path:
        """The environment's folder."""
        return HOMES.get(self.group, ROOT / f".venv-clients-{self.group}")

    @property
    def command(self) -> list[str]:
        """The program, and the script for it."""
        if self.group == "npm":
            # Modules are looked for beside the script that imports them.
            return [str(self.home / "node_modules/.bin/node"), str(self.home / self.script)]
        if not self.script:
            return [str(self.home / "bin" / self.name)]
        return [str(self.home / "bin/python"), str(HERE / "scenarios" / self.script)]

    @property
    def version(self) -> str:
        """Of the package that is installed there."""
        if self.group == "npm":
            manifest = self.home / "node_modules" / self.name / "package.json"
            return str(json.loads(manifest.read_text())["version"])
        return installed_version(self.home, self.name)


def installed_version(home: Path, package: str) -> str:
    """Version of a package in a Python environment."""
    folders = [str(folder) for folder in home.glob("lib/python3.*/site-packages")]
    (found,) = distributions(name=package, path=folders)
    return found.version


@dataclass
class Run:
    """What came of one scenario.

    Attributes:
        said: what the client made of the answers, as its script printed it.
        exchanges: all that went over the wire.
        server: URL of the server itself.
    """

    said: Any
    exchanges: list[Exchange]
    server: str
    answered: list[Exchange] = field(init=False)

    def __post_init__(self) -> None:
        generating = (CHAT, COMPLETIONS, RESPONSES)
        self.answered = [one for one in self.exchanges if one.path in generating]

    def check(self) -> None:
        """What must hold of every answer to every client."""
        for one in self.answered:
            assert one.status == 200, one.received
            check_usage(one, self.server)
            check_calls(one)
        check_streams(self.answered)


RunScenario = Callable[..., Run]
RunProgram = Callable[[Callable[[str], list[str]]], Run]


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("TWOFOUR_CLIENTS_ENGINE"):
        return Path(given)
    folder = tmp_path_factory.mktemp("clients") / "engine"
    command = [sys.executable, "-m", "twofour.cli", "build", "--model", MODEL]
    command += ["--transform", str(MASKS / "transform.safetensors")]
    command += ["--mask", f"general={MASKS / 'general.safetensors'}", "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def server(engine: Path) -> Iterator[ServerProcess]:
    command = [sys.executable, "-m", "twofour.cli", "serve", str(engine), "--port", "0"]
    running = start_process(command)
    yield running
    code = running.stop()
    assert code == 0, "".join(running.log)
    assert "Traceback" not in "".join(running.log)


@pytest.fixture
def client(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> Client:
    """The module's client, whose name and version go into the report of the run."""
    client: Client = request.module.CLIENT
    program = client.command[0]
    assert Path(program).exists(), f"{program} is missing: make test-clients makes it"
    record_property("client", client.name)
    record_property("version", client.version)
    return client


@pytest.fixture
def run_program(client: Client, server: ServerProcess, tmp_path: Path) -> RunProgram:
    """Runs the client with the arguments that a function makes of the server's URL.

    What must hold of every answer is checked; `said` is the output.
    """

    def run(arguments: Callable[[str], list[str]]) -> Run:
        with Tee(server.url) as tee:
            done = subprocess.run(
                [*client.command, *arguments(tee.url)],
                cwd=tmp_path,
                env=client.environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        assert done.returncode == 0, done.stdout + done.stderr
        found = Run(done.stdout, tee.exchanges(), server.url)
        found.check()
        return found

    return run


@pytest.fixture
def run(run_program: RunProgram) -> RunScenario:
    """Runs a scenario of the client's script; `said` is what the script printed."""

    def run(scenario: str, *arguments: str) -> Run:
        found = run_program(lambda url: [scenario, url, MODEL, *arguments])
        found.said = json.loads(found.said.splitlines()[-1])
        return found

    return run
