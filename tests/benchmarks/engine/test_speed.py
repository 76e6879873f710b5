"""The engine benchmark on a tiny model: every row, and every figure possible."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median

import pytest

from benchmarks.engine.arms import engine_command, llama_command
from benchmarks.engine.llama_worker import run_wave
from benchmarks.engine.speed import BenchError, Plan, as_rows, measure, merged
from benchmarks.engine.split import split_of
from engines.build import BuildRequest
from engines.cpu.build import build
from tests.engines.conftest import random_mask
from tests.tiny_model import make_tiny_llama

FIELDS = {
    "arm", "prompt_tokens", "output_tokens", "concurrency", "threads", "tokens_per_s",
    "prompt_tokens_per_s", "decode_tokens_per_s", "ttft_ms", "tpot_ms", "rss_mib", "weights_mib",
    "kv_mib", "load_peak_mib",
}  # fmt: skip


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bench")
    model = make_tiny_llama(folder / "model")
    mask = random_mask(model, folder / "mask.safetensors")
    build(BuildRequest(model, "tiny", {"general": mask}, folder / "sparse"))
    build(BuildRequest(model, "tiny", {}, folder / "dense"))
    return folder / "sparse", folder / "dense"


def test_every_cell_has_a_row_of_every_arm(arms: tuple[Path, Path]) -> None:
    plan = Plan(lengths=((8, 30), (20, 40)), concurrencies=(1, 3), repeats=2, threads=1)
    commands = {
        name: engine_command(directory, plan)
        for name, directory in zip(("sparse", "dense"), arms, strict=True)
    }
    rows = as_rows(list(measure(commands, plan, lambda line: None)))
    cells = [(r["arm"], r["prompt_tokens"], r["output_tokens"], r["concurrency"]) for r in rows]
    assert cells == [
        (arm, p, o, c) for p, o in plan.lengths for c in (1, 3) for arm in ("sparse", "dense")
    ]
    for row in rows:
        assert row.keys() >= FIELDS
        assert len(row["tokens_per_s_all"]) == 2
        # On a busy machine all tokens of so small a model may reach the event loop at once.
        assert [name for name in FIELDS - {"arm", "tpot_ms"} if not row[name] > 0] == []
    assert rows[0]["weights_mib"] < rows[1]["weights_mib"]
    assert rows[0]["sparse_ratio"] is None
    pairs = zip(rows[0]["tokens_per_s_all"], rows[1]["tokens_per_s_all"], strict=True)
    assert rows[1]["sparse_ratio"] == pytest.approx(median(a / b for a, b in pairs), rel=0.02)


def test_rows_are_kept_by_cell_and_arm() -> None:
    def row(arm: str, concurrency: int, isa: str | None, value: int) -> dict[str, object]:
        cell = {"prompt_tokens": 8, "output_tokens": 4, "concurrency": concurrency, "threads": 2}
        return {"arm": arm, **cell, "isa": isa, "tokens_per_s": value}

    old = [row("sparse", 1, "avx2", 1), row("vllm-dense", 1, None, 2), row("sparse", 8, "avx2", 3)]
    rows = merged(old, [row("sparse", 1, "avx2", 9)])
    assert [r["tokens_per_s"] for r in rows] == [2, 3, 9]
    with pytest.raises(BenchError, match="another machine"):
        merged(old, [row("sparse", 1, "avx512", 9)])


# What llama-batched-bench prints for these arguments; the first line is its log.
BATCHED_BENCH = """#!/bin/sh
echo "loading $2"
echo '{"pp": 8, "tg": 30, "pl": 3, "n_threads": 1, "t_pp": 0.5, "t_tg": 1.5}'
"""


def test_llama_cpp_is_an_arm(tmp_path: Path) -> None:
    program, gguf = tmp_path / "llama-batched-bench", tmp_path / "model.gguf"
    program.write_text(BATCHED_BENCH)
    program.chmod(0o755)
    gguf.write_bytes(bytes(3 << 20))
    plan = Plan(lengths=((8, 30),), concurrencies=(3,), repeats=1, threads=1)
    # The warm-up asks for one sequence, which this program does not measure.
    with pytest.raises(BenchError, match=r"llama.cpp-bf16 arm ended"):
        list(measure({"llama.cpp-bf16": llama_command(program, gguf, plan)}, plan, print))
    found = run_wave(gguf, str(program), 1, prompt_tokens=8, output_tokens=30, concurrency=3)
    assert found["tokens_per_s"] == 3 * 30 / 2.0
    assert found["prompt_tokens_per_s"] == 3 * 8 / 0.5
    assert (found["decode_tokens_per_s"], found["ttft_ms"], found["tpot_ms"]) == (60, 500, 50)


def test_an_arm_that_dies_is_an_error() -> None:
    plan = Plan(lengths=((8, 4),), concurrencies=(1,), repeats=1, threads=1)
    with pytest.raises(BenchError, match="broken arm ended with code 3"):
        list(measure({"broken": [sys.executable, "-c", "raise SystemExit(3)"]}, plan, print))


@pytest.mark.parametrize("change", [{"repeats": 0}, {"lengths": ((0, 4),)}, {"concurrencies": ()}])
def test_plans_that_measure_nothing(change: dict[str, object]) -> None:
    fields: dict[str, object] = {"lengths": (), "concurrencies": (1,), "repeats": 1, "threads": 1}
    with pytest.raises(ValueError, match="at least 1"):
        Plan(**{**fields, "lengths": () if "concurrencies" in change else ((1, 1),), **change})


def test_the_split_adds_up(arms: tuple[Path, Path]) -> None:
    found = split_of(arms[0], threads=1, context=40, steps=3)
    parts = ("weights_ms", "head_ms", "attention_ms", "overhead_ms")
    assert sum(found[p] for p in parts) == pytest.approx(found["step_ms"])
    assert found["moved_mib"] > 0
