"""The comparison of servers, against stand-ins whose speed and answers are known."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.common import machine
from benchmarks.common.arm_process import ArmError
from benchmarks.common.machine import BusyMachineError
from benchmarks.serve import compare, server_process
from benchmarks.serve.compare import ComparisonError, LoadPlan, compare_arms
from benchmarks.serve.report import notes, result_fields, table
from benchmarks.serve.server_process import Server, ServerReport
from loadtests.calibration import Bias, CalibrationError
from loadtests.comparison import Block
from loadtests.samples import read_samples
from loadtests.summary import summarise
from twofour.cli import app

FAKE = Path(__file__).with_name("fake_twofour.py")
SPARSE = {"sparse_layers": 14, "eligible_layers": 14, "layout": "rows16-v1", "weight_bytes": 60}
DENSE = {"sparse_layers": 0, "eligible_layers": 0, "layout": None, "weight_bytes": 100}
# Others use this machine too: measure anyway, and ask nothing about absolute times.
QUICK = LoadPlan(
    concurrencies=(2,), requests=2, repeats=2, max_tokens=10, prompt_words=5, force=True
)

Arm = Callable[..., Path]


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        server_process,
        "serve_command",
        lambda directory, port: [sys.executable, str(FAKE), str(directory), port],
    )
    monkeypatch.setattr(compare, "calibrate", lambda folder, concurrency: Bias(1.0, 0.5, 0.5))


@pytest.fixture
def arm(tmp_path: Path) -> Arm:
    """Makes a directory for the stand-in server."""

    def make(name: str, gap_s: float, engine: dict[str, Any], **answers: Any) -> Path:
        common = {"isa": "avx2", "base_digest": "d" * 64, "kernels": {"64x64": "k"}}
        directory = tmp_path / name
        directory.mkdir()
        content = {"gap_s": gap_s, "engine": common | engine} | answers
        (directory / "fake.json").write_text(json.dumps(content))
        return directory

    return make


def test_a_faster_server_wins_by_its_measure(arm: Arm, tmp_path: Path) -> None:
    said: list[str] = []
    dense, sparse = arm("dense", 0.04, DENSE), arm("sparse", 0.01, SPARSE)
    found = compare_arms(dense, sparse, QUICK, tmp_path / "out", said.append)
    first, second = found.rows
    assert (first.arm, first.ratio, second.arm) == ("dense", 1.0, "sparse")
    assert second.tokens_per_s > first.tokens_per_s
    assert second.ratio > 1
    assert second.ratio_low is not None
    assert [(b.repeat, b.arm) for b in found.blocks] == [
        (0, "dense"),
        (0, "sparse"),
        (1, "sparse"),
        (1, "dense"),
    ]
    for block in found.blocks:
        samples = read_samples(found.folder / block.samples_file)
        assert sum(not sample.warmup for sample in samples) == block.summary.requests == 2
    assert found.servers["sparse"].sparse_share == 1.0
    assert found.servers["sparse"].rss_bytes > 2**20
    assert found.servers["sparse"].generated_tokens == 2 * 4 * 10
    assert any("repeat 2 of 2" in line for line in said)
    assert table(found).row_count == 2
    assert any("14 of 14 eligible layers (100%)" in line for line in notes(found))
    json.dumps(result_fields(found, QUICK))


def _report(arm: str, engine: dict[str, Any]) -> ServerReport:
    common = {"isa": "avx2", "base_digest": "d" * 64, "kernels": {}, "rss_bytes": 1}
    return ServerReport(arm=arm, directory=arm, **({"generated_tokens": 5} | common | engine))


@pytest.mark.parametrize(
    ("dense", "sparse", "message"),
    [
        ({}, {"sparse_layers": 0}, "no layer of sparse runs a sparse kernel"),
        (SPARSE, {}, "is no dense baseline"),
        ({}, {"isa": "portable"}, "unlike kernels: avx2 and portable"),
        ({}, {"base_digest": "e" * 64}, "unlike models"),
    ],
)
def test_arms_that_make_no_comparison_are_refused(
    dense: dict[str, Any], sparse: dict[str, Any], message: str
) -> None:
    compare._check_arms(_report("dense", DENSE), _report("sparse", SPARSE))
    with pytest.raises(ComparisonError, match=message):
        compare._check_arms(_report("dense", DENSE | dense), _report("sparse", SPARSE | sparse))


def test_an_engine_that_counted_less_than_it_sent_is_refused() -> None:
    told = dataclasses.replace(summarise([]), output_tokens=3)
    blocks = [Block("dense", 1, repeat, told, "f.jsonl", 0.0, 0.0) for repeat in (0, 1)]
    compare._check_counts(blocks, {"dense": _report("dense", DENSE | {"generated_tokens": 6})})
    with pytest.raises(ComparisonError, match="says 6 tokens, its engine counted 5"):
        compare._check_counts(blocks, {"dense": _report("dense", DENSE)})


def test_a_block_with_a_failed_request_ends_the_comparison(arm: Arm, tmp_path: Path) -> None:
    dense = arm("dense", 0.001, DENSE, short=True)
    sparse = arm("sparse", 0.001, SPARSE)
    with pytest.raises(ComparisonError, match="2 x generated 1 tokens, not 10"):
        compare_arms(dense, sparse, QUICK, tmp_path / "out")


def test_a_server_that_contradicts_itself_is_refused(arm: Arm, tmp_path: Path) -> None:
    sparse = arm("sparse", 0.001, SPARSE, metrics={"sparse_layers": 3})
    with Server("sparse", sparse, tmp_path / "log") as server:
        server.wait_until_healthy()
        with pytest.raises(ArmError, match="contradicts itself about sparse_layers"):
            server.report()


def test_a_server_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    with (
        Server("dense", tmp_path / "nowhere", tmp_path / "log") as server,
        pytest.raises(ArmError, match=r"(?s)ended with code 1.*fake\.json"),
    ):
        server.wait_until_healthy()


class _Busy:
    """Counts `with` blocks and says that others were busy in the first `times` of them."""

    times = 0
    entered = 0

    def __enter__(self) -> _Busy:
        type(self).entered += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.share = 0.5 if type(self).entered <= self.times else 0.0


def _pretend_busy(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    monkeypatch.setattr(_Busy, "times", times)
    monkeypatch.setattr(_Busy, "entered", 0)
    for module in (compare, machine):
        monkeypatch.setattr(module, "OtherCpu", _Busy)


def test_a_busy_machine_is_refused(
    arm: Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend_busy(monkeypatch, 99)
    dense, sparse = arm("dense", 0.001, DENSE), arm("sparse", 0.001, SPARSE)
    monkeypatch.setattr(machine.time, "sleep", lambda seconds: None)
    with pytest.raises(BusyMachineError, match=r"other processes use 50%.*--force"):
        compare_arms(dense, sparse, LoadPlan(), tmp_path / "out")


def test_disturbed_blocks_are_measured_again(
    arm: Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The look before the start finds the machine calm, the first two attempts do not.
    _pretend_busy(monkeypatch, 2)
    monkeypatch.setattr(compare, "require_quiet", lambda force: None)
    plan = LoadPlan(concurrencies=(1,), requests=1, repeats=1, max_tokens=5)
    dense, sparse = arm("dense", 0.001, DENSE), arm("sparse", 0.001, SPARSE)
    found = compare_arms(dense, sparse, plan, tmp_path / "out")
    assert [b.samples_file for b in found.blocks] == [
        "dense-c1-r0-again2.jsonl",
        "sparse-c1-r0.jsonl",
    ]
    assert found.other_cpu_share == 0.0


def test_a_load_generator_that_distorts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "calibrate", lambda folder, concurrency: Bias(164.0, 90.0, 30.0))
    monkeypatch.setattr(compare, "require_quiet", lambda force: None)
    with pytest.raises(CalibrationError, match=r"164.0 ms on time to first token"):
        compare_arms(tmp_path, tmp_path, dataclasses.replace(QUICK, force=False), tmp_path / "out")


def test_raw_samples_need_a_folder_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").touch()
    with pytest.raises(ValueError, match="is not empty"):
        compare_arms(tmp_path, tmp_path, QUICK, tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {"concurrencies": ()},
        {"concurrencies": (0,)},
        {"concurrencies": (1, 1)},
        {"repeats": 0},
        {"seconds": 0.0},
        {"seconds": 1.0, "requests": 3},
        {"threads": 0},
    ],
)
def test_plans_that_make_no_comparison_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|once|give one"):
        LoadPlan(**changed).check()


def test_the_command_writes_the_result_file(
    arm: Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dense, sparse = arm("dense", 0.002, DENSE), arm("sparse", 0.001, SPARSE)
    options = ["--concurrency", "1", "--requests", "1", "--repeats", "1", "--max-tokens", "5"]
    arguments = ["--dense", str(dense), "--sparse", str(sparse), *options, "--force", "--json"]
    done = CliRunner().invoke(app, ["bench", "serve", *arguments])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout.splitlines()[-1])
    (path,) = tmp_path.rglob("serve.json")
    assert printed == json.loads(path.read_text())
    assert [row["arm"] for row in printed["rows"]] == ["dense", "sparse"]
    assert {"concurrency", "tokens_per_s", "ttft_p50_ms", "tpot_p50_ms", "ratio"} <= set(
        printed["rows"][0]
    )
    assert {"other_cpu_share", "machine", "servers", "calibration", "plan"} <= set(printed)
    assert "raw samples: results" in done.stdout


def test_the_command_ends_with_1_when_there_is_nothing_sparse(
    arm: Arm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dense = arm("dense", 0.001, DENSE)
    both = ["--dense", str(dense), "--sparse", str(dense)]
    done = CliRunner().invoke(app, ["bench", "serve", *both, "--force"])
    assert done.exit_code == 1
    assert "no layer of" in done.stderr
    assert not (tmp_path / "docs").exists()
