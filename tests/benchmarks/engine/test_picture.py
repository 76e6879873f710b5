"""The README's picture takes its points from the result files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.engine.picture import PictureError, draw_panels, points

QUALITY = [
    {"arm": arm, "perplexity": value}
    for arm, value in (("sparse", 47.0), ("torch-sparse", 47.1), ("dense", 20.7))
]


def speed(arm: str, rate: float, concurrency: int = 1) -> dict[str, Any]:
    cell = {"prompt_tokens": 128, "output_tokens": 128, "concurrency": concurrency}
    return {"arm": arm, **cell, "tokens_per_s": rate, "weights_mib": 100.0}


def test_points_are_of_one_cell_and_of_arms_that_both_files_have(tmp_path: Path) -> None:
    rows = [
        *(speed(arm, rate) for arm, rate in (("sparse", 140.0), ("dense", 100.0))),
        *(speed(arm, 90.0) for arm in ("llama.cpp-bf16", "llama.cpp-q8_0", "vllm-dense")),
        speed("sparse", 600.0, concurrency=8),
    ]
    found = points(QUALITY, rows, (128, 128, 1))
    assert found == {
        "sparse": (47.0, 140.0, 100.0),
        "dense": (20.7, 100.0, 100.0),
        "llama.cpp-bf16": (20.7, 90.0, 100.0),
    }
    draw_panels(found, "a title", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_a_picture_without_both_arms_is_refused() -> None:
    with pytest.raises(PictureError, match="no dense and no sparse arm at 128/512 tokens"):
        points(QUALITY, [speed("sparse", 1.0)], (128, 512, 1))
