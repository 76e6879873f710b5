"""`twofour bench`: its modes, and how much one of them may ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from twofour.cli import app


def bench_commands() -> Iterator[tuple[str, Any]]:
    """Name and command of everything below `twofour bench`."""
    waiting = [("bench", typer.main.get_command(app).commands["bench"])]  # type: ignore[attr-defined]
    while waiting:
        name, command = waiting.pop()
        if hasattr(command, "commands"):
            waiting += [(f"{name} {sub}", c) for sub, c in command.commands.items()]
        else:
            yield name, command


def test_modes_are_commands() -> None:
    assert {name.removeprefix("bench ") for name, _ in bench_commands()} == {
        *("kernels", "serve", "quality", "values", "trtllm", "pages", "picture"),
        *("models", "agreement", "compare", "report", "overhead", "reliability", "export"),
        *("engine speed", "engine split", "engine mix", "engine second"),
        *("masks league", "masks domains", "masks ablations", "masks cost", "masks step"),
        *("masks products", "masks patterns", "masks permutation", "masks structure"),
        *("vllm speed", "vllm agreement"),
    }


@pytest.mark.parametrize(("name", "command"), list(bench_commands()))
def test_no_command_asks_for_too_much(name: str, command: Any) -> None:
    assert len(command.params) < 20, name


@pytest.mark.parametrize(
    ("group", "first"), [("engine", "speed"), ("masks", "league"), ("vllm", "speed")]
)
def test_the_first_mode_needs_no_name(group: str, first: str) -> None:
    def run(*words: str) -> str:
        return CliRunner().invoke(app, ["bench", group, *words]).output

    wrong = run(first, "--no-such-option")
    assert f"bench {group} {first}" in wrong
    assert "--no-such-option" in wrong
    assert run("--no-such-option") == wrong
    assert "Commands" in run("--help")
    assert first in run("--help")
    assert "No such command" in run("spede")
