"""The engine benchmark on a tiny model: every row, and every figure possible."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median

import pytest
from typer.testing import CliRunner

from benchmarks.common.arm_process import ArmError
from benchmarks.engine.arms import engine_command
from benchmarks.engine.speed import SpeedPlan, measure
from benchmarks.engine.split import split_of
from engines.cpu.build import build
from engines.directory.build import BuildRequest
from tests.engines.conftest import random_mask
from tests.tiny_model import make_tiny_llama
from twofour.cli import app

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
    plan = SpeedPlan(lengths=((8, 30), (20, 40)), concurrencies=(1, 3), repeats=2, threads=1)
    commands = {
        name: engine_command(directory, plan)
        for name, directory in zip(("sparse", "dense"), arms, strict=True)
    }
    found = list(measure(commands, plan, lambda line: None))
    assert [len(rows) for rows in found] == [2] * 4
    rows = [row for cell in found for row in cell]
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


def test_an_arm_that_dies_is_an_error() -> None:
    plan = SpeedPlan(lengths=((8, 4),), concurrencies=(1,), repeats=1, threads=1)
    with pytest.raises(ArmError, match="broken arm ended with code 3"):
        list(measure({"broken": [sys.executable, "-c", "raise SystemExit(3)"]}, plan, print))


@pytest.mark.parametrize("change", [{"repeats": 0}, {"lengths": ((0, 4),)}, {"concurrencies": ()}])
def test_plans_that_measure_nothing(change: dict[str, object]) -> None:
    fields: dict[str, object] = {"lengths": (), "concurrencies": (1,), "repeats": 1, "threads": 1}
    with pytest.raises(ValueError, match="at least 1"):
        SpeedPlan(**{**fields, "lengths": () if "concurrencies" in change else ((1, 1),), **change})


def test_the_split_adds_up(arms: tuple[Path, Path]) -> None:
    found = split_of(arms[0], threads=1, context=40, steps=3)
    parts = ("weights_ms", "head_ms", "attention_ms", "overhead_ms")
    assert sum(found[p] for p in parts) == pytest.approx(found["step_ms"])
    assert found["moved_mib"] > 0


def test_the_command_measures_what_it_is_given(
    arms: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["--lengths", "8/4", "--concurrency", "1", "--repeats", "1", "--threads", "1"]

    def bench(*words: str) -> list[str]:
        done = CliRunner().invoke(app, ["bench", "engine", *words, *short, "--json"])
        assert done.exit_code == 0, (done.output, done.exception)
        result = json.loads(done.stdout.splitlines()[-1])
        assert result == json.loads(Path("docs/results/bench-engine.json").read_text())
        assert result["model"] == "tiny"
        return [row["arm"] for row in result["rows"]]

    assert bench("--sparse", str(arms[0]), "--dense", str(arms[1])) == ["sparse", "dense"]
    assert bench("speed", "--sparse", str(arms[0])) == ["sparse"]
    assert bench("speed", "--dense", str(arms[1]), "--keep") == ["sparse", "dense"]
    page = Path("docs/results/bench-engine.md").read_text()
    assert "| prompt / output | requests | sparse | dense |" in page
    words = ["split", "--sparse", str(arms[0]), "--dense", str(arms[1]), "--contexts", "20"]
    done = CliRunner().invoke(app, ["bench", "engine", *words, "--threads", "1"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "| dense, 20 |" in Path("docs/results/engine-split.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --dense and --sparse, or --model and --mask"),
        (["--sparse", "DIR", "--mask", "general=FILE"], "give --dense and --sparse, or --model"),
        (["--lengths", "128"], "must be pairs of numbers from 1"),
        (["--concurrency", "0"], "--concurrency '0': must be numbers from 1"),
        (["mix", "--changed", "x"], "--changed 'x': not numbers"),
        (["mix", "--lengths", "8/4,8/5"], "give one pair"),
        (["mix", "--mask", "general=FILE"], "FILE does not exist"),
        (["mix"], "give --sparse, or --model and --mask for the base"),
        (["split"], "give --dense and --sparse, or --model and --mask"),
    ],
)
def test_what_cannot_be_measured_is_refused(words: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["bench", "engine", *words])
    assert isinstance(done.exception, ValueError), done.output
    assert message in str(done.exception)
