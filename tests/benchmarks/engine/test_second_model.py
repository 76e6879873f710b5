"""The table of a second real model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.engine import second_model
from benchmarks.engine.second_model import second_model_rows
from benchmarks.engine.speed import SpeedPlan
from engines.cpu.build import build
from engines.directory.build import BuildRequest
from maskgen.texts.text_sets import TextSet
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama


def test_a_row_has_quality_and_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny_llama(tmp_path / "model", max_position_embeddings=4096)
    build(BuildRequest(model, "tiny", {}, tmp_path / "dense"))
    figures: dict[str, Any] = {"sparse_ratio": 1.2, "rss_mib": 3.0, "other_cpu_share": 0.0}
    timed = [[{"arm": arm, "tokens_per_s": 5.0, **figures} for arm in ("dense", "llama.cpp-bf16")]]
    monkeypatch.setattr(second_model, "measure", lambda *_: timed)
    plan = SpeedPlan(((8, 8),), (1,), 1, 1)
    texts = TextSet.of("text", [SAMPLE_TEXT * 20])
    rows = second_model_rows("tiny", {"dense": tmp_path / "dense"}, {}, plan, texts, 1, print)
    assert [(row["model"], row["arm"], row["tokens_per_s"]) for row in rows] == [
        ("tiny", "dense", 5.0),
        ("tiny", "llama.cpp-bf16", 5.0),
    ]
    assert rows[0]["wikitext2"] > 1
    assert rows[1]["wikitext2"] is None
