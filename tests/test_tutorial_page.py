"""docs/tutorial.md: every command runs, on a tiny model, and prints what the page shows.

What is compared is the form: numbers count as equal, and of JSON the keys and kinds of values.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from maskgen.transform.absorb import transformed
from tests.doc_blocks import fenced
from tests.engines.conftest import random_mask
from tests.serving.conftest import ServerProcess, start_process
from tests.tiny_model import make_tiny_llama
from twofour.cli import app

MODEL, PORT = "smollm2-135m", "8000"
SERVE = "twofour serve engine"


def steps() -> list[tuple[str, str]]:
    """Each command of the page with the output that is shown below it."""
    found: list[tuple[str, str]] = []
    for block in fenced("tutorial.md", "console"):
        for part in re.split(r"^\$ ", block.replace("\\\n", ""), flags=re.M)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def form(output: str) -> Any:
    """What an output has in common with that of another model on another machine."""
    try:
        return shape(json.loads(output))
    except ValueError:
        # `--dtype auto` is what is fast on a machine.
        same = re.sub(r"\b(bf16|fp32)\b", "dtype", output)
        return re.sub(r"\d[\d.,:]*", "0", same).split()


def shape(value: Any) -> Any:
    match value:
        case dict():
            return {key: shape(inner) for key, inner in value.items()}
        case list():
            return [shape(inner) for inner in value]
        case _:
            return type(value).__name__


@contextmanager
def served(cwd: Path, environment: dict[str, str]) -> Iterator[ServerProcess]:
    command = [sys.executable, "-m", "twofour.cli", *SERVE.split()[1:], "--port", "0"]
    server = start_process(command, cwd=cwd, environment=environment)
    try:
        yield server
    finally:
        assert server.stop() == 0, "".join(server.log)


def run(command: str, environment: dict[str, str]) -> str:
    """What a command writes to stdout; ours run in this process, which has loaded torch."""
    if command.startswith("twofour "):
        ours = CliRunner().invoke(app, shlex.split(command)[1:])
        assert ours.exit_code == 0, f"{command}\n{ours.output}{ours.exception}"
        return ours.stdout
    shell = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_every_command_prints_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny_llama(tmp_path / "models" / MODEL, max_position_embeddings=2048)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    commands = steps()
    serve = [command for command, _ in commands].index(SERVE)
    for command, output in commands[:serve]:
        said = run(command.replace(f"--model {MODEL}", f"--model {model}"), environment)
        said = said.replace(str(model), MODEL)
        assert form(said) == form(output), f"{command}\n{said}"
        if command.startswith("cp "):
            # What comes with twofour is SmolLM2's; this model needs some of its own.
            find = f"twofour transform learn --model {model} --data seen.txt --method zigzag"
            run(f"{find} --windows 2 --length 32 --out transform.safetensors", environment)
            base = transformed(model, work / "transform.safetensors")
            random_mask(base, work / "general.safetensors", seed=1)
            random_mask(base, work / "general-prior.safetensors", seed=2)
    with served(work, environment) as server:
        assert form(server.log[-1].split("serving: ")[1]) == form(commands[serve][1])
        for command, output in commands[serve + 1 :]:
            said = run(command.replace(f"127.0.0.1:{PORT}", server.url[7:]), environment)
            assert form(said) == form(output), f"{command}\n{said}"
