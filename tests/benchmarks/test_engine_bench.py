"""The engine benchmark on a tiny model: every row, and every figure possible."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.engine import BenchError, Plan, as_rows, engine_command, measure
from benchmarks.engine_split import split_of
from engines.build import BuildRequest
from engines.cpu.build import build
from tests.engines.conftest import random_mask
from tests.tiny_model import make_tiny_llama

FIELDS = {
    "arm", "prompt_tokens", "output_tokens", "concurrency", "threads", "tokens_per_s",
    "prompt_tokens_per_s", "decode_tokens_per_s", "ttft_ms", "tpot_ms", "rss_mib", "weights_mib",
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
        name: engine_command(directory, 1, 3)
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
