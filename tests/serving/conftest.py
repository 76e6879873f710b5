"""A client on the app itself, and real server processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.app import create_app
from serving.config import ServerSettings
from tests.serving.fake_engine import FakeEngine

ROOT = Path(__file__).parents[2]


@dataclass
class App:
    """The app without a server: requests go straight into it."""

    client: httpx.AsyncClient
    engine: FakeEngine
    app: Any


@asynccontextmanager
async def open_app(
    directory: Path, engine: FakeEngine | None = None, *, tracing: Any = None, **settings: Any
) -> AsyncIterator[App]:
    engine = engine or FakeEngine(directory)
    app = create_app(ServerSettings(directory=directory, **settings), engine, tracing)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield App(client, engine, app)


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    async with open_app(tmp_path) as opened:
        yield opened


@dataclass
class ServerProcess:
    """A server in a process of its own."""

    process: subprocess.Popen[str]
    url: str
    log: list[str]

    def stop(self, sig: signal.Signals = signal.SIGTERM, timeout: float = 60) -> int:
        """Signal it, wait, and return its exit code."""
        self.process.send_signal(sig)
        rest, _ = self.process.communicate(timeout=timeout)
        self.log.append(rest)
        return self.process.returncode


def start_process(
    command: list[str],
    timeout: float = 180,
    *,
    cwd: Path = ROOT,
    environment: Mapping[str, str] = os.environ,
) -> ServerProcess:
    """Start a server and wait until it says where it listens."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env={k: v for k, v in environment.items() if not k.startswith("SERVING_")},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    log: list[str] = []
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        line = process.stdout.readline()
        if not line:
            break
        log.append(line)
        found = re.search(r"serving .* on (http://\S+)", line)
        if found:
            return ServerProcess(process, found[1], log)
    process.kill()
    process.communicate()
    raise AssertionError("the server did not start:\n" + "".join(log))


StartFake = Callable[..., ServerProcess]


def fake_command(directory: Path, step_seconds: float, **settings: Any) -> list[str]:
    options = json.dumps({"port": 0, **settings})
    module = "tests.serving.run_fake"
    return [sys.executable, "-m", module, str(directory), options, str(step_seconds)]


@pytest.fixture
def start_fake(tmp_path: Path) -> Iterator[StartFake]:
    """Starts servers on fake engines; those still running at the end are killed."""
    started: list[ServerProcess] = []

    def start(step_seconds: float = 0.0, **settings: Any) -> ServerProcess:
        started.append(start_process(fake_command(tmp_path, step_seconds, **settings)))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.process.communicate()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server on a fake engine for all tests that leave it as it was."""
    command = fake_command(tmp_path_factory.mktemp("fake"), 0.002, max_waiting=128)
    running = start_process(command)
    yield running
    running.process.kill()
    running.process.communicate()
