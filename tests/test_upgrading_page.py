"""docs/upgrading.md: what it calls gone is gone, and what it names instead is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from twofour.cli import app

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "upgrading.md").read_text()


def table(heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, without its head."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = re.search(r"(?:^\|.*\n)+", section, re.M)[0].splitlines()[2:]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def exists(command: str) -> bool:
    """Whether a command line of ours parses as far as its names go."""
    words = command.split()
    if words[:2] == ["python", "-m"]:
        # A package without `__main__` cannot be run.
        return ROOT.joinpath(*words[2].split(".")).with_suffix(".py").is_file()
    found = typer.main.get_command(app)
    for word in words[1:]:
        if word.startswith("--"):
            return any(word in param.opts for param in found.params)
        if word not in getattr(found, "commands", {}):
            return False
        found = found.commands[word]
    return True


@pytest.mark.parametrize(("was", "now"), table("Commands and options"), ids=lambda cell: cell)
def test_commands(was: str, now: str) -> None:
    assert not exists(was)
    assert exists(now)


@pytest.mark.parametrize(("package", "was", "now"), table("Python modules"), ids=lambda cell: cell)
def test_modules(package: str, was: str, now: str) -> None:
    assert not is_module(f"{package}.{was}")
    assert is_module(now)
