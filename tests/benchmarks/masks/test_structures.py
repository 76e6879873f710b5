"""`twofour bench masks structure` on a tiny model: rows, recovered ones, and their speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama
from twofour.cli import app

SMALL = ("steps=4", "sequence_length=16", "batch_size=1", "held_out_windows=2", "held_out_every=2")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_tiny_llama(tmp_path / "model", max_position_embeddings=2048, intermediate_size=256)
    for name, text in (("learn", SAMPLE_TEXT * 5), ("test", SAMPLE_TEXT[::-1] * 30)):
        (tmp_path / f"{name}.txt").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bench(folder: Path, *arguments: object):
    words = ["bench", "masks", "structure", "--model", folder / "model"]
    words += [] if "--speed" in arguments else ["--ratio", 0.8]
    words += ["--learn", folder / "learn.txt", "--wikitext2", folder / "test.txt"]
    words += ["--c4", folder / "test.txt", "--windows", 1, "--work", folder / "work"]
    words += ["--calibration-windows", 2, "--calibration-length", 64, *arguments]
    return CliRunner().invoke(app, [str(word) for word in words])


def rows() -> list[dict[str, object]]:
    return json.loads(Path("docs/results/structure.json").read_text())["rows"]


def test_structures_are_measured_recovered_and_timed(folder):
    settings = [word for setting in SMALL for word in ("--set", setting)]
    result = bench(folder, *settings, "--only", "magnitude", "--only", "flap")
    assert result.exit_code == 0, (result.output, result.exception)
    plain = rows()
    names = [(row["method"], row["recovered"]) for row in plain]
    assert names == [("dense", False), ("flap", False), ("magnitude", False)]
    assert plain[1]["intermediate_size"] == plain[2]["intermediate_size"] < 256
    assert all(row["tokens_per_s"] is None for row in plain)

    tuning = [word for name in ("steps=2", "sequence_length=16") for word in ("--recover", name)]
    result = bench(folder, "--only", "magnitude", *tuning)
    assert result.exit_code == 0, (result.output, result.exception)
    (added,) = [row for row in rows() if row["recovered"]]
    assert added["method"] == "magnitude"
    assert added["tokens_seen"] == 2 * 2 * 16
    assert added["recovery"] == {"steps": 2, "sequence_length": 16}

    result = bench(folder, "--speed", "--force")
    assert result.exit_code == 0, (result.output, result.exception)
    timed = rows()
    assert [row["wikitext2"] for row in timed] == [row["wikitext2"] for row in [*plain, added]]
    assert {row["times_dense"] for row in timed if row["method"] == "dense"} == {1.0}
    assert len({row["tokens_per_s"] for row in timed}) == 2  # one number a shape
    assert " yes |" in Path("docs/results/structure.md").read_text()
    again = bench(folder, "--only", "magnitude", "--redo", "--recover", "steps=3")
    assert "delete it, or give another --work" in str(again.exception)
    assert "without other choices" in str(bench(folder, "--speed", "--only", "flap").exception)


def test_without_models_there_is_nothing_to_time(folder):
    assert bench(folder, "--only", "magnitude").exit_code == 0
    for file in (folder / "work" / "structures").glob("magnitude-*"):
        file.rename(folder / file.name)
    result = bench(folder, "--speed", "--force")
    assert isinstance(result.exception, ValueError)
    assert "measure its rows with the same --work first" in str(result.exception)
