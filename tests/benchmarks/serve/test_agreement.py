"""Two clients on one server, with a stand-in for guidellm."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.arm_process import ArmError
from benchmarks.serve.agreement import (
    FIGURES,
    AgreementPlan,
    agreement_table,
    guidellm_figures,
    measure_agreement,
)
from benchmarks.serve.arms import ComparisonError
from tests.benchmarks.serve.conftest import SPARSE, MakeDirectory

REPORT: dict[str, Any] = {
    "benchmarks": [
        {
            "metrics": {
                "request_totals": {"successful": 4, "incomplete": 0, "errored": 0, "total": 4},
                "output_tokens_per_second": {"successful": {"mean": 100.0}},
                "time_to_first_token_ms": {"successful": {"median": 20.0}},
                "inter_token_latency_ms": {"successful": {"median": 2.0}},
            }
        }
    ]
}

STAND_IN = """
import json, os, sys
words = sys.argv[1:]
out = next(w.partition("path=")[2] for w in words if w.startswith("kind=json"))
report = json.loads(REPORT)
open(out, "w").write(json.dumps(report))
open(out + ".seen", "w").write(json.dumps([words, sorted(os.sched_getaffinity(0))]))
sys.exit(CODE)
"""


def _guidellm(path: Path, code: int = 0) -> Path:
    source = STAND_IN.replace("REPORT", repr(json.dumps(REPORT))).replace("CODE", str(code))
    path.write_text(f"#!{sys.executable}\n{source}")
    path.chmod(0o755)
    return path


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_both_measure_the_same_server(directory: MakeDirectory, tmp_path: Path) -> None:
    engine = directory("engine", 0.004, SPARSE)
    plan = AgreementPlan(_guidellm(tmp_path / "guidellm"), 9, 5, requests=4, repeats=1)
    ours, theirs = measure_agreement(engine, plan, 2, tmp_path / "out", lambda line: None)
    assert (ours["tool"], theirs["tool"]) == ("twofour", "guidellm")
    assert [theirs[figure] for figure in FIGURES] == [100.0, 20.0, 2.0]
    assert ours["tpot_p50_ms"] > 0
    assert (ours["concurrency"], ours["requests"], ours["prompt_tokens"]) == (2, 4, 9)
    (seen,) = (tmp_path / "out").glob("*.seen")
    words, cores = json.loads(seen.read_text())
    assert "kind=synthetic_text,prompt_tokens=9,output_tokens=5" in words
    assert "kind=max_requests,count=6" in words
    assert cores == sorted(os.sched_getaffinity(0))[1:]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_guidellm_that_fails_is_told(directory: MakeDirectory, tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    plan = AgreementPlan(_guidellm(tmp_path / "guidellm", code=3), 9, 5, requests=1, repeats=1)
    with pytest.raises(ArmError, match="guidellm ended with code 3"):
        measure_agreement(
            directory("engine", 0.001, SPARSE), plan, 1, tmp_path / "out", lambda line: None
        )
    assert os.sched_getaffinity(0) == before


def test_failed_requests_and_other_reports_are_refused() -> None:
    assert guidellm_figures(REPORT)["tokens_per_s"] == 100.0
    failed = json.loads(json.dumps(REPORT))
    failed["benchmarks"][0]["metrics"]["request_totals"]["errored"] = 2
    with pytest.raises(ComparisonError, match="2 of guidellm's requests failed"):
        guidellm_figures(failed)
    with pytest.raises(ComparisonError, match="another form"):
        guidellm_figures({"benchmarks": []})


def test_the_table_has_the_one_over_the_other() -> None:
    figures = {"tokens_per_s": 100.0, "ttft_p50_ms": 50.0, "tpot_p50_ms": 10.0}
    rows = [
        {"tool": tool, "concurrency": 4} | {k: v * f for k, v in figures.items()}
        for tool, f in (("twofour", 1.0), ("guidellm", 1.02))
    ]
    assert "| guidellm / twofour | 4 | 1.020 | 1.020 | 1.020 |" in agreement_table({"rows": rows})
