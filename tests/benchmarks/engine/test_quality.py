"""`twofour bench quality` on a tiny model: what is timed is what is scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engines.cpu.build import build
from engines.directory.build import BuildRequest
from tests.engines.conftest import random_mask
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama
from twofour.cli import app


def test_engines_and_torch_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny_llama(tmp_path / "model", max_position_embeddings=2048)
    mask = random_mask(model, tmp_path / "mask.safetensors")
    build(BuildRequest(model, "tiny", {"general": mask}, tmp_path / "sparse"))
    build(BuildRequest(model, "tiny", {}, tmp_path / "dense"))
    (tmp_path / "text.txt").write_text(SAMPLE_TEXT * 40)
    monkeypatch.chdir(tmp_path)
    words = ["bench", "quality", "--model", "model", "--mask", str(mask), "--data", "text.txt"]

    def arms(*more: str) -> dict[str, float]:
        done = CliRunner().invoke(app, [*words, "--windows", "1", *more, "--json"])
        assert done.exit_code == 0, (done.output, done.exception)
        rows = json.loads(done.stdout.splitlines()[-1])["rows"]
        return {row["arm"]: row["perplexity"] for row in rows}

    sparse = arms("--sparse", "sparse")
    assert list(sparse) == ["sparse", "torch-sparse"]
    both = arms("--dense", "dense")  # the sparse rows are there already
    assert list(both) == ["sparse", "torch-sparse", "dense", "torch-dense"]
    for arm in ("sparse", "dense"):
        assert both[arm] == pytest.approx(both[f"torch-{arm}"], rel=0.02)
    assert both["sparse"] != both["dense"]
    assert "| sparse |" in Path("docs/results/quality.md").read_text()
    done = CliRunner().invoke(app, [*words, "--peer", "vllm=x"])
    assert "--peer 'vllm=x': give llama.cpp-TYPE=FILE.gguf" in str(done.exception)
    assert "nothing to score" in str(CliRunner().invoke(app, words).exception)
