"""Runs the first example of a page of the documentation, on a tiny model and little text."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.doc_blocks import fenced
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama
from twofour.cli import app

HERE = {
    "smollm2-135m": "tiny",
    "wikipedia:train": "learn.txt",
    "wikipedia:test": "test.txt",
    "c4": "test.txt",
}
"""What a page names -> what the folder of the test has in its place."""


def enter_example(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go to a folder with a tiny model and two texts, and a cache of its own."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TWOFOUR_CACHE", str(folder / "cache"))
    make_tiny_llama(folder / "tiny")
    Path("learn.txt").write_text(SAMPLE_TEXT * 3)
    Path("test.txt").write_text(SAMPLE_TEXT[::-1])


def run_line(line: str) -> str:
    """What `twofour LINE` prints, on one line; it must succeed."""
    result = CliRunner().invoke(app, shlex.split(line))
    assert result.exit_code == 0, (line, result.output, result.exception)
    return result.output.replace("\n", " ")


def run_example(page: str, small: Mapping[str, str]) -> list[str]:
    """What each command of the page's first shell block prints.

    Args:
        page: such as `structure.md`.
        small: how a command begins -> options that make it cheap.
    """
    outputs = []
    for line in fenced(page, "sh")[0].replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line)
        assert program == "twofour"
        more = next(more for name, more in small.items() if " ".join(words).startswith(name))
        outputs.append(run_line(f"{shlex.join([HERE.get(word, word) for word in words])} {more}"))
    return outputs
