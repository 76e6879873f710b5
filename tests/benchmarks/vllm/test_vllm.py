"""The vLLM benchmark's arithmetic and merging; vLLM itself is not started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.vllm import speed as vllm
from benchmarks.vllm.process import ArmProcess
from benchmarks.vllm.report import summary


def row(arm: str, tokens_per_s: float, **fields: Any) -> dict[str, Any]:
    base = {"arm": arm, "batch": 1, "mode": "eager", "binding": "all"}
    return {**base, "tokens_per_s": tokens_per_s, **fields}


def test_each_arm_counts_at_its_best() -> None:
    rows = [
        row("sparse", 90.0),
        row("sparse", 120.0, mode="compiled"),
        row("own-dense", 80.0, binding="nobind"),
        row("dense", 30.0),
        row("dense-fp32", 100.0, mode="compiled"),
        row("sparse", 300.0, batch=32),
    ]
    one, many = summary(rows)
    assert one["usefulness"] == 1.2
    assert one["sparsity"] == 1.5
    assert one["best_tokens_per_s"]["dense"] == 30.0
    assert many == {"batch": 32, "best_tokens_per_s": {"sparse": 300.0}}


def test_only_rows_that_are_measured_again_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "RESULTS", tmp_path)
    fresh = [row("sparse", 2.0)]
    assert vllm._kept(fresh) == ([], [])
    old = [row("sparse", 1.0), row("sparse", 1.0, batch=8), row("dense", 1.0)]
    parts = [{"command": "c"}]
    file = tmp_path / f"{vllm.NAME}.json"
    file.write_text(json.dumps({"rows": old, "parts": parts}))
    assert vllm._kept(fresh) == (old[1:], parts)


def test_an_arm_that_cannot_start_says_why(tmp_path: Path) -> None:
    job = {"model": str(tmp_path / "nothing"), "mode": "eager", "batches": [1], "dtype": "bfloat16"}
    with pytest.raises(RuntimeError, match=r"nothing failed:\n(.|\n)*Error"), ArmProcess(job, {}):
        pytest.fail("it did start")
