"""The example of docs/transforms.md runs as it is written, on a tiny model and little text."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.doc_blocks import fenced
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama
from twofour.cli import app

CALIBRATION = "--windows 2 --length 32"
SMALL = {
    "transform learn": CALIBRATION,
    "transform inspect": "",
    "mask prune": CALIBRATION,
    "eval": "--window 64 --windows 2",
}


def test_the_example_finds_a_basis_and_measures_a_mask_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TWOFOUR_CACHE", str(tmp_path / "cache"))
    make_tiny_llama(tmp_path / "tiny")
    Path("learn.txt").write_text(SAMPLE_TEXT * 3)
    Path("test.txt").write_text(SAMPLE_TEXT[::-1])
    here = {"smollm2-135m": "tiny", "wikipedia:train": "learn.txt", "wikipedia:test": "test.txt"}
    outputs = []
    for line in fenced("transforms.md", "sh")[0].replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line)
        assert program == "twofour"
        small = next(more for name, more in SMALL.items() if " ".join(words).startswith(name))
        words = [here.get(word, word) for word in words] + small.split()
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (line, result.output, result.exception)
        outputs.append(result.output.replace("\n", " "))
    assert "rotation, entropy before" in outputs[0]
    assert "rotation + assignment, retained before" in outputs[1]
    assert "perplexity" in outputs[-1]
