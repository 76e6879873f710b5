from __future__ import annotations

from typing import Any

import pytest

from benchmarks.common.maskllm_grid import GRID, PAPER, scaled_grid
from benchmarks.serve.page import serve_page
from benchmarks.serve.paper_table import paper_table, preset_lengths


def _result(preset: str | None) -> dict[str, Any]:
    lengths = ["16/16", "16/256", "256/16"]  # and 256/256 was not measured
    rows = [
        {
            "arm": arm,
            "lengths": cell,
            "concurrency": 1,
            "tokens_per_s": 50.0 * factor,
            "ttft_p50_ms": 1.0,
            "tpot_p50_ms": 1.0,
            "ratio": factor,
            "ratio_low": factor,
            "ratio_high": factor,
        }
        for cell in lengths
        for arm, factor in (("dense", 1.0), ("sparse", 1.5))
    ]
    return {
        "plan": {"preset": preset},
        "reference": "dense",
        "arms": {"sparse": {}, "dense": {}},
        "rows": rows,
    }


def test_the_papers_figures_are_whole() -> None:
    assert all(len(figures) == len(GRID) for figures in PAPER.values())
    gains = [sparse / dense for figures in PAPER.values() for dense, sparse in figures]
    # As the paper has them: 1.36 to 1.41 for 7B, 1.50 to 1.57 for 13B.
    assert [round(gain, 2) for gain in gains] == [1.41, 1.39, 1.37, 1.36, 1.57, 1.54, 1.52, 1.5]


def test_what_was_measured_stands_beside_the_paper() -> None:
    found = paper_table(_result("maskllm/8"))
    assert found is not None
    headings, lines = found
    assert headings == [
        "in / out", "Llama-2 7B: dense, 2:4", "Llama-2 13B: dense, 2:4", "dense", "sparse",
    ]  # fmt: skip
    assert lines[0] == [
        "128 / 128 (here 16 / 16)",
        "61.74, 86.92 (1.41x)",
        "32.97, 51.64 (1.57x)",
        "50.0",
        "75.0 (1.50x)",
    ]
    assert lines[3][-2:] == ["void", "void"]
    assert paper_table(_result(None)) is None


def test_the_page_has_it() -> None:
    result = _result("maskllm/8") | {
        "calibration": {"ttft_ms": 1.0, "token_p90_ms": 1.0},
        "servers": {},
        "command": "twofour bench serve",
        "date": "2026-11-27",
        "machine": {"cpu": "c", "cores": 2, "memory_gib": 1, "system": "s"},
        "machine_class": "avx2",
        "versions": {},
        "data_digests": {},
    }
    assert "| 2048 / 128 (here 256 / 16) | 57.55, 78.81 (1.37x) |" in serve_page(result)


def test_scales() -> None:
    assert preset_lengths("maskllm") == GRID
    assert (
        preset_lengths("maskllm/8")
        == scaled_grid(8)
        == ((16, 16), (16, 256), (256, 16), (256, 256))
    )
    for bad in ("maskllm/0", "maskllm/65", "maskllm/", "other"):
        with pytest.raises(ValueError, match="maskllm"):
            preset_lengths(bad)
