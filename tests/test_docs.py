"""README and docs name only commands, options, make targets and files that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from markdown_it import MarkdownIt

from twofour.cli import app
from twofour.commands.first_mode import FirstModeGroup

ROOT = Path(__file__).parents[1]
SHELL = ("", "sh", "bash", "console")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "masks").rglob("*.md")),
]


def _blocks(page: Path) -> str:
    """The shell blocks of a page, continued lines joined."""
    tokens = MarkdownIt().parse(page.read_text())
    found = [
        token.content
        for token in tokens
        if token.type == "code_block" or (token.type == "fence" and token.info in SHELL)
    ]
    return "\n".join(found).replace("\\\n", " ")


def _commands(page: Path) -> list[str]:
    lines = (line.strip() for line in _blocks(page).splitlines())
    found = (re.match(r"(?:\$ )?(?:\.venv/bin/)?(twofour [a-z].*)", line) for line in lines)
    return [match[1] for match in found if match]


@pytest.mark.parametrize(
    ("page", "line"),
    [pytest.param(page, line, id=line) for page in PAGES for line in _commands(page)],
)
def test_commands_and_options_exist(page: Path, line: str) -> None:
    check_command(line, page.name)


def check_command(line: str, where: str) -> None:
    """A `twofour` command line names commands and options that exist."""
    words = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        named = words and not words[0].startswith("-")
        if not named and isinstance(command, FirstModeGroup):
            words.insert(0, next(iter(command.commands)))
        assert words, f"{where}: {line!r} names no command"
        name = words.pop(0).split("|")[0]
        assert name in command.commands, f"{where}: {line!r}: no command {name!r}"
        command = command.commands[name]
    known = {option for param in command.params for option in param.opts + param.secondary_opts}
    used = {word.split("=")[0].strip("[]") for word in words if word.strip("[").startswith("--")}
    assert used <= known | {"--help"}, f"{where}: {line!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_and_linked_files_exist(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    used = set(re.findall(r"^make ([a-z-]+)", _blocks(page), re.M))
    used |= set(re.findall(r"`make ([a-z-]+)", text))
    assert used <= targets, f"{page.name} names make targets that do not exist"
    for link in re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", text):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"
    for path in re.findall(
        r"`((?:maskgen|engines|serving|loadtests|benchmarks|tests)/[\w./-]*)`", text
    ):
        assert (ROOT / path).exists(), f"{page.name} names {path}"
