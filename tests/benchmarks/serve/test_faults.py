"""What goes wrong in mid-run is told by the outcome, the report and the exit code."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.serve.arms import Arm
from benchmarks.serve.compare import ServeComparison, compare_arms
from benchmarks.serve.plan import LoadPlan
from loadtests.client_calibration import Bias
from tests.benchmarks.serve.conftest import DENSE, SPARSE, MakeDirectory
from twofour.cli import app

PLAN = LoadPlan(concurrencies=(1,), requests=2, repeats=2, max_tokens=5, force=True)


def _compare(sparse: Path, dense: Path, folder: Path) -> ServeComparison:
    arms = [Arm("dense", dense, kind="dense"), Arm("sparse", sparse, kind="sparse")]
    return compare_arms(arms, PLAN, folder)


def test_a_server_that_is_killed_in_mid_run(directory: MakeDirectory, tmp_path: Path) -> None:
    dense = directory("dense", 0.001, DENSE)
    sparse = directory("sparse", 0.001, SPARSE, fault={"2": "exit"})
    found = _compare(sparse, dense, tmp_path / "out")
    text = "\n".join(found.problems)
    assert "sparse, 100 words/5 tokens, 1 at a time, repeat 1: 1 x " in text
    assert "the sparse arm ended with code 9" in text
    assert found.rows == []
    assert [block.arm for block in found.blocks] == ["dense", "sparse"]


def test_a_server_that_is_gone_before_a_block(directory: MakeDirectory, tmp_path: Path) -> None:
    # The sparse arm ends with its last request: the next block of it finds nobody.
    dense = directory("dense", 0.001, DENSE)
    sparse = directory("sparse", 0.001, SPARSE, exit_after=3)
    found = _compare(sparse, dense, tmp_path / "out")
    text = "\n".join(found.problems)
    assert "sparse, 100 words/5 tokens, 1 at a time, repeat 2: locust ended with code 2" in text
    assert "cannot ask http" in text
    assert "the sparse arm ended with code 9" in text
    assert found.rows == []


def test_a_server_that_stalls(directory: MakeDirectory, tmp_path: Path) -> None:
    dense = directory("dense", 0.001, DENSE)
    sparse = directory("sparse", 0.001, SPARSE, fault={"3": "stall"})
    found = _compare(sparse, dense, tmp_path / "out")
    (problem,) = found.problems
    assert problem.startswith("sparse, 100 words/5 tokens, 1 at a time, repeat 1: the server stall")
    assert found.blocks[-1].summary.failed == 0, "every request succeeded, and yet it is void"


def test_the_command_reports_what_happened(
    directory: MakeDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dense = directory("dense", 0.001, DENSE)
    sparse = directory("sparse", 0.001, SPARSE, fault={"2": "exit"})
    options = ["--concurrency", "1", "--requests", "2", "--repeats", "1", "--set", "max_tokens=5"]
    pair = ["--dense", str(dense), "--sparse", str(sparse), "--out", "out", "--result", "serve"]
    done = CliRunner().invoke(app, ["bench", "serve", *pair, *options, "--force"])
    assert done.exit_code == 1
    assert "the sparse arm ended with code 9" in done.stderr
    report = Path("out/report.html").read_text()
    assert "Void: measuring ended here" in report
    assert "the sparse arm ended with code 9" in report
    assert "No load was measured in full." in report
    result: dict[str, Any] = json.loads(Path("out/serve.json").read_text())
    assert result["rows"] == []
    assert not Path("docs").exists(), "nothing void is published"


def test_calibration_is_told_when_forced(
    directory: MakeDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "benchmarks.serve.compare.calibrate", lambda folder, concurrency: Bias(40.0, 0.5, 0.5)
    )
    plan = dataclasses.replace(PLAN, repeats=1)
    found = compare_arms([Arm("dense", directory("dense", 0.001, DENSE))], plan, tmp_path / "out")
    assert found.problems == []
    assert any("adds 40.0 ms on time to first token" in doubt for doubt in found.doubts)
