"""The TensorRT-LLM benchmark: its script, run against stand-ins, and its table."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.trtllm.plan import GridPlan, write_plan
from benchmarks.trtllm.report import GridRow, read_reports, table
from tests.engines.tensorrt_llm.helpers import mask_file
from tests.engines.tensorrt_llm.standins import StandIns, install
from tests.tiny_model import make_tiny_llama
from twofour.cli import app

GRID = ((8, 4), (16, 32))

_BENCH = """
import json, os, sys
words = sys.argv[1:]
with open(os.environ["STANDIN_CALLS"], "a") as file:
    print(json.dumps(sys.argv), file=file)
value = lambda flag: words[words.index(flag) + 1]
requests = [json.loads(line) for line in open(value("--dataset"))]
assert len(requests) == int(value("--num_requests"))
engine = json.load(open(value("--engine_dir") + "/config.json"))["build_config"]
plugin = engine["plugin_config"]["gemm_plugin"] == "auto"
speed = 100.0 + 50 * engine["weight_sparsity"] + 10 * plugin
report = {"performance": {"system_output_throughput_tok_s": speed + len(requests[0]["input_ids"])}}
json.dump(report, open(value("--report_json"), "w"))
"""

_TWOFOUR = """
import json, os, sys
if sys.argv[1] == "build":
    from twofour.cli import main
    main()
else:
    with open(os.environ["STANDIN_CALLS"], "a") as file:
        print(json.dumps(sys.argv), file=file)
"""


@pytest.fixture
def plan(tmp_path: Path) -> GridPlan:
    model = make_tiny_llama(tmp_path / "hf")
    mask = mask_file(model, tmp_path / "mask.safetensors")
    return GridPlan(model, "tiny", mask, tmp_path / "bench", grid=GRID, requests=3)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    tools = install(tmp_path / "tools", monkeypatch)
    for name, source in {"trtllm-bench": _BENCH, "twofour": _TWOFOUR}.items():
        path = tools.folder / "bin" / name
        path.write_text(f"#!{sys.executable}\n{source}")
        path.chmod(0o755)
    return tools


def test_the_whole_script(
    plan: GridPlan, tools: StandIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = write_plan(plan)
    done = subprocess.run(
        ["bash", str(script)], env=os.environ.copy(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = read_reports(plan.folder)
    assert [(r.arm, r.input_tokens, r.output_tokens, r.tokens_per_s) for r in rows] == [
        ("dense-plugin", 8, 4, 118.0),
        ("dense", 8, 4, 108.0),
        ("sparse", 8, 4, 158.0),
        ("dense-plugin", 16, 32, 126.0),
        ("dense", 16, 32, 116.0),
        ("sparse", 16, 32, 166.0),
    ]
    assert (rows[2].eligible, rows[2].chosen) == (8, 8)
    assert rows[0].chosen is None
    ours = tools.calls("twofour")
    assert [call[:2] for call in ours] == [["bench", "serve"]] * 2 + [["bench", "trtllm"]]
    assert ours[0][3] == str(plan.folder / "dense-plugin")
    assert ours[1][3] == str(plan.folder / "dense")
    # A second run measures nothing again.
    before = len(tools.calls("trtllm-bench"))
    subprocess.run(["bash", str(script)], check=True, capture_output=True)
    assert len(tools.calls("trtllm-bench")) == before == 6
    # What it reports is a result with a page.
    monkeypatch.chdir(tmp_path)
    report = CliRunner().invoke(app, ["bench", "trtllm", "--report", str(plan.folder), "--json"])
    assert report.exit_code == 0, (report.output, report.exception)
    assert len(json.loads(report.stdout.splitlines()[-1])["rows"]) == 6
    page = Path("docs/results/trtllm.md").read_text()
    assert "| 8 / 4 | 118 | 108 | 158 | 1.34 | 8 of 8 |" in page


def test_data_sets_are_what_trtllm_bench_reads(plan: GridPlan) -> None:
    write_plan(plan)
    lines = (plan.folder / "requests-16-32.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["task_id"] for row in rows] == [0, 1, 2]
    assert {len(row["input_ids"]) for row in rows} == {16}
    assert {row["output_tokens"] for row in rows} == {32}
    assert all(0 <= token < 300 for row in rows for token in row["input_ids"])
    again = write_plan(plan).parent / "requests-16-32.jsonl"
    assert again.read_text().splitlines() == lines


def test_without_a_gpu_it_writes_the_script_and_says_so(
    plan: GridPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    words = ["bench", "trtllm", "--model", str(plan.model), "--mask", str(plan.mask)]
    done = CliRunner().invoke(app, [*words, "--out", str(plan.folder), "--grid", "8/4"])
    assert done.exit_code == 3
    assert "nothing was measured: TensorRT-LLM is not installed" in done.stderr
    assert os.access(plan.folder / "run.sh", os.X_OK)
    assert not (plan.folder / "reports").exists()


def test_the_table_compares_with_the_faster_dense_engine() -> None:
    speeds = {"dense-plugin": 60.0, "dense": 50.0, "sparse": 90.0}
    rows = [GridRow(arm, 128, 2048, speed, 8, 6) for arm, speed in speeds.items()]
    console = Console(file=io.StringIO(), width=120)
    console.print(table(rows))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "6 of 8 layers sparse" in text
    assert "1.50x" in text
    assert text.index("60.00") < text.index("50.00") < text.index("90.00")


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no reports"):
        read_reports(tmp_path)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/dense-8-4.json").write_text('{"performance": {}}')
    with pytest.raises(ValueError, match=r"dense-8-4\.json is no report"):
        read_reports(tmp_path)


def test_grids_that_are_none_are_refused(plan: GridPlan) -> None:
    words = ["bench", "trtllm", "--model", str(plan.model), "--mask", str(plan.mask), "--grid"]
    for text in ("128", "0/5", "a/b", "128/128/1", ""):
        done = CliRunner().invoke(app, [*words, text])
        assert isinstance(done.exception, ValueError)
        assert "--grid" in str(done.exception)


def test_a_grid_that_the_model_cannot_hold(plan: GridPlan) -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match="needs 4096 tokens, tiny has 512 positions"):
        write_plan(replace(plan, grid=((2048, 2048),)))
    assert not plan.folder.exists()
