"""The example of docs/structure.md runs as it is written, on a tiny model and little text."""

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
    "structure learn": f"{CALIBRATION} --multiple 8 --set steps=4 --set sequence_length=32"
    " --set held_out_windows=2",
    "structure inspect": "",
    "structure apply": "",
    "recover": "--steps 2 --sequence-length 32",
    "mask prune": CALIBRATION,
    "eval": "--window 64 --windows 2",
}


def test_the_example_makes_a_smaller_model_recovers_and_masks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TWOFOUR_CACHE", str(tmp_path / "cache"))
    make_tiny_llama(tmp_path / "tiny")
    Path("learn.txt").write_text(SAMPLE_TEXT * 3)
    Path("test.txt").write_text(SAMPLE_TEXT[::-1])
    here = {"smollm2-135m": "tiny", "wikipedia:train": "learn.txt", "wikipedia:test": "test.txt"}
    outputs = []
    for line in fenced("structure.md", "sh")[0].replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line)
        assert program == "twofour"
        small = next(more for name, more in SMALL.items() if " ".join(words).startswith(name))
        words = [here.get(word, word) for word in words] + small.split()
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (line, result.output, result.exception)
        outputs.append(result.output.replace("\n", " "))
    assert "% of the linears' weights; from" in outputs[0]
    assert "low rank modules: 14" in outputs[1]
    assert "a layer, base digest" in outputs[2]
    assert "recovered by tiny from 128 tokens" in outputs[3]
    assert "perplexity" in outputs[-1]
