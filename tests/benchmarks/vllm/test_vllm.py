"""The vLLM benchmark, on what stands in for vLLM."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.common.arm_process import ArmError
from benchmarks.vllm import speed
from benchmarks.vllm.agreement import AgreementPlan, Step, _row, check
from benchmarks.vllm.report import speed_summary
from benchmarks.vllm.speed import VllmPlan, measure
from tests.tiny_model import make_tiny_llama
from twofour.cli import app


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
    one, many = speed_summary(rows)
    assert one["usefulness"] == 1.2
    assert one["sparsity"] == 1.5
    assert one["best_tokens_per_s"]["dense"] == 30.0
    assert many == {"batch": 32, "best_tokens_per_s": {"sparse": 300.0}}


PLAN = VllmPlan(("sparse", "dense"), ("eager",), ("all",), (1, 8), {"dense": 1}, 4, 3, 2)

VLLM = {
    "vllm/__init__.py": """
from types import SimpleNamespace as SamplingParams
from types import SimpleNamespace
class LLM:
    def __init__(self, model, **options):
        import subprocess, sys
        if model.endswith("nothing"):
            raise OSError(f"{model} is no model")
        self.worker = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"],
                                       stdin=subprocess.PIPE)
    def generate(self, prompts, sampling, use_tqdm):
        assert {len(prompt["prompt_token_ids"]) for prompt in prompts} == {4}
        made = SimpleNamespace(token_ids=[0] * sampling.max_tokens)
        return [SimpleNamespace(outputs=[made])] * len(prompts)
""",
    "vllm/platforms.py": "current_platform = object()",
}


@pytest.fixture
def magnitude(tmp_path: Path) -> Path:
    model = make_tiny_llama(tmp_path / "model")
    return speed._magnitude_mask(model, tmp_path / "magnitude.safetensors")


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, code in VLLM.items():
        path = tmp_path / "environment" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    root = Path(__file__).parents[3]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'environment'}:{root}")
    return tmp_path


def test_arms_take_turns_and_stay_below_their_limits(vllm: Path) -> None:
    (rows,) = measure(PLAN, {"sparse": vllm, "dense": vllm}, lambda line: None)
    assert [(row["arm"], row["batch"]) for row in rows] == [
        ("sparse", 1),
        ("dense", 1),
        ("sparse", 8),
    ]
    for row in rows:
        assert row["tokens_per_s_best"] >= row["tokens_per_s"] > 0
        assert row["worker_rss_mib"] > 0


def test_an_arm_that_cannot_start_says_why(vllm: Path) -> None:
    with pytest.raises(ArmError, match=r"(?s)sparse arm ended .*nothing is no model"):
        list(measure(PLAN, {"sparse": vllm / "nothing"}, lambda line: None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": ("sparse", "fast")}, "--arms: 'fast' is none of sparse, own-dense"),
        ({"modes": ("lazy",)}, "--modes: 'lazy' is none of eager, compiled"),
        ({"bindings": ("some",)}, "--bindings: 'some' is none of all"),
        ({"batches": ()}, "must be at least 1"),
    ],
)
def test_plans_that_measure_nothing(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PLAN, **change)


def test_zentorch_needs_an_environment_of_its_own() -> None:
    with pytest.raises(ValueError, match="an environment with zentorch"):
        list(measure(replace(PLAN, arms=("zentorch",)), {}, print))


def test_agreement_is_held_to_its_rule() -> None:
    plan = AgreementPlan("m", Path("g"), 1, 4, 4, margin=0.1, eager=True)
    steps = [Step(True, 1.0, 0.01)] * 98 + [Step(False, 0.05, 0.1), Step(False, 0.5, -0.2)]
    row = _row(plan, steps)
    assert (row["differ_share"], row["broken_share"]) == (0.02, 0.01)
    assert (row["largest_margin_where_different"], row["largest_logprob_error"]) == (0.5, 0.2)
    check(row)
    with pytest.raises(ValueError, match=r"2.00% of the steps differ .* at most 1% may"):
        check(_row(plan, [*steps[:-2], Step(False, 0.4, 0.0), steps[-1]]))


def test_parts_of_a_measurement_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, magnitude: Path
) -> None:
    def measure_one(plan: VllmPlan, directories: Any, say: Any) -> Iterator[list[dict[str, Any]]]:
        fields = {"output_tokens": 8, "worker_rss_mib": 5.0, "other_cpu_share": 0.1}
        for mode in plan.modes:
            yield [row(arm, 90.0, mode=mode, binding="all", **fields) for arm in plan.arms]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed, "build_arms", lambda *given: {"mask": magnitude})
    monkeypatch.setattr(speed, "measure", measure_one)
    monkeypatch.setattr("engines.vllm_plugin.version.vllm_version", lambda: "0.32.0")

    def bench(*words: str) -> dict[str, Any]:
        fixed = ["bench", "vllm", "--model", str(tmp_path / "model"), "--json"]
        done = CliRunner().invoke(app, [*fixed, *words])
        assert done.exit_code == 0, (done.output, done.exception)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    first = bench("--arms", "sparse,own-dense")
    assert [(r["arm"], r["mode"]) for r in first["rows"]] == [
        (arm, mode) for mode in ("eager", "compiled") for arm in ("sparse", "own-dense")
    ]
    assert first["summary"][0]["sparsity"] == 1.0
    both = bench("--arms", "dense", "--modes", "eager", "--keep")
    assert [r["arm"] for r in both["rows"]].count("sparse") == 2
    assert both["rows"][-1]["arm"] == "dense"
    assert len(both["parts"]) == 2
    assert both["parts"][0] == first["parts"][0]
    assert both["parts"][1]["mask_digest"] == first["parts"][0]["mask_digest"]
    assert bench("--arms", "dense", "--modes", "eager")["parts"][0]["other_cpu_share"] == 0.1
    assert "| dense | eager | all | 8 | 90.0 |" in Path("docs/results/bench-vllm.md").read_text()
