"""The example of docs/recovery.md runs as it is written, on a tiny model and little text."""

from __future__ import annotations

import shlex
from pathlib import Path

from typer.testing import CliRunner

from tests.doc_blocks import fenced
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama
from twofour.cli import app

SMALL = {
    "recover": "--steps 2 --sequence-length 16 --held-out-every 1 --held-out-windows 2"
    " --set windows=2 --set window_length=16",
    "eval": "--window 64 --windows 2",
}


def twofour(line: str) -> str:
    result = CliRunner().invoke(app, shlex.split(line))
    assert result.exit_code == 0, (line, result.output, result.exception)
    return result.output


def test_the_example_recovers_a_model_and_measures_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_tiny_llama(tmp_path / "tiny")
    Path("learn.txt").write_text(SAMPLE_TEXT * 3)
    Path("test.txt").write_text(SAMPLE_TEXT[::-1])
    twofour("mask prune --model tiny --method magnitude --out general.safetensors")
    here = {
        "smollm2-135m": "tiny",
        "wikipedia:train": "learn.txt",
        "wikipedia:test": "test.txt",
        "c4": "test.txt",
    }
    outputs = []
    for line in fenced("recovery.md", "sh")[0].replace("\\\n", " ").splitlines():
        program, command, *words = shlex.split(line)
        assert program == "twofour"
        chosen = shlex.join([here.get(word, word) for word in words])
        outputs.append(twofour(f"{command} {chosen} {SMALL[command]}"))
    recovered, measured = outputs
    assert "recovered for general.safetensors" in recovered.replace("\n", " ")
    assert "perplexity" in measured
    assert Path("smollm2-single/recovery.json").is_file()
