"""`twofour bench export` on a tiny model, with a stand-in for llama.cpp's program."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.engines.conftest import random_mask
from tests.engines.oracle import Oracle
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama
from twofour.cli import app

STANDIN = """#!{python}
import sys
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert open(words["-m"], "rb").read(4) == b"GGUF"
assert open(words["-f"]).read() == {text!r}
assert (words["-c"], words["-b"], words["--chunks"]) == ("32", "32", "3"), words
{end}
"""


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TWOFOUR_CACHE", str(tmp_path / "cache"))
    model = make_tiny_llama(tmp_path / "model")
    mask = random_mask(model, tmp_path / "mask.safetensors")
    (tmp_path / "text.txt").write_text(SAMPLE_TEXT)
    words = ["bench", "export", "--model", "model", "--mask", str(mask), "--data", "text.txt"]
    return [*words, "--window", "32", "--windows", "3", "--program", "./program"]


def write_program(end: str) -> None:
    program = Path("program")
    program.write_text(STANDIN.format(python=sys.executable, text=SAMPLE_TEXT, end=end))
    program.chmod(0o755)


def test_rows_compare_the_program_with_torch(words: list[str], tmp_path: Path) -> None:
    write_program('print("Final estimate: PPL = 123.4567 +/- 1.2", file=sys.stderr)')
    done = CliRunner().invoke(app, [*words, "--types", "f32,q8_0"])
    assert done.exit_code == 0, done.exception
    rows = json.loads(Path("docs/results/export.json").read_text())["rows"]
    assert [row["type"] for row in rows] == ["f32", "q8_0"]
    from maskgen.format.tokenizer import ModelTokenizer

    tokens = list(ModelTokenizer(tmp_path / "model").encode(SAMPLE_TEXT))
    oracle, total = Oracle(tmp_path / "model", tmp_path / "mask.safetensors"), 0.0
    for start in (0, 32, 64):
        window = tokens[start : start + 32]
        scores = oracle.log_probs(window)
        total -= sum(scores[at - 1][window[at]] for at in range(17, 32))
    expected = math.exp(total / 45)
    for row in rows:
        assert row["llama_cpp"] == 123.4567
        assert row["model"] == pytest.approx(expected, rel=1e-3)
        assert row["apart"] == pytest.approx(123.4567 / row["file"] - 1, abs=1e-5)
    assert rows[0]["file"] == pytest.approx(expected, rel=1e-3)
    assert rows[1]["file"] != rows[0]["file"]
    assert "| `q8_0` |" in Path("docs/results/export.md").read_text()


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ('sys.exit("failed to load the model")', "ended with 1: failed to load the model"),
        ('print("perplexity: nothing")', "ended with 0: perplexity: nothing"),
    ],
)
def test_a_program_that_fails_is_named(words: list[str], end: str, message: str) -> None:
    write_program(end)
    done = CliRunner().invoke(app, [*words, "--types", "f32"])
    assert done.exit_code == 1
    assert message in str(done.exception)
    assert not Path("docs/results").exists()


def test_too_little_text_and_a_missing_program_are_named(words: list[str]) -> None:
    done = CliRunner().invoke(app, words)
    assert "program: there is no such file" in str(done.exception)
    write_program("")
    done = CliRunner().invoke(app, [*words, "--windows", "4000", "--types", "f32"])
    assert "4000 windows of 32 need 128000" in str(done.exception)
