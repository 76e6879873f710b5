"""The comparison of servers, against stand-ins whose speed and answers are known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from benchmarks.common import machine
from benchmarks.common.arm_process import ArmError
from benchmarks.common.machine import BusyMachineError
from benchmarks.common.server_process import Server, ServerReport
from benchmarks.serve import compare
from benchmarks.serve.arms import Arm, ComparisonError, check_reports
from benchmarks.serve.compare import ServeComparison, compare_arms, count_problems
from benchmarks.serve.plan import LoadPlan, read_plan
from benchmarks.serve.report import notes, table
from loadtests.blocks import LoadPoint
from loadtests.client_calibration import Bias, CalibrationError, free_port
from loadtests.samples import read_samples
from tests.benchmarks.serve.conftest import DENSE, SPARSE, MakeDirectory
from twofour.cli import app

# Others use this machine too: measure anyway, and ask nothing about absolute times.
QUICK = LoadPlan(
    concurrencies=(2,), requests=2, repeats=2, max_tokens=10, prompt_words=5, force=True
)


def test_a_faster_server_wins_by_its_measure(directory: MakeDirectory, tmp_path: Path) -> None:
    said: list[str] = []
    dense, sparse = directory("dense", 0.04, DENSE), directory("sparse", 0.01, SPARSE)
    found = _compare(dense, sparse, QUICK, tmp_path / "out", said.append)
    found.require_valid()
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


def _compare(
    dense: Path, sparse: Path, plan: LoadPlan, folder: Path, say: compare.Say = lambda line: None
) -> ServeComparison:
    arms = [Arm("dense", dense, kind="dense"), Arm("sparse", sparse, kind="sparse")]
    return compare_arms(arms, plan, folder, say)


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
    arms = [Arm("dense", Path("d"), kind="dense"), Arm("sparse", Path("s"), kind="sparse")]
    reports = {"dense": _report("dense", DENSE), "sparse": _report("sparse", SPARSE)}
    check_reports(arms, reports)
    with pytest.raises(ComparisonError, match=message):
        check_reports(
            arms,
            {
                "dense": _report("dense", DENSE | dense),
                "sparse": _report("sparse", SPARSE | sparse),
            },
        )


def test_an_engine_that_counted_less_than_it_sent_is_a_problem() -> None:
    report = _report("dense", DENSE | {"generated_tokens": 6})
    assert count_problems(report, told=6) == []
    assert count_problems(report, told=7) == [
        "the dense server says 7 tokens, its engine counted 6"
    ]


def test_a_block_with_a_failed_request_voids_the_comparison_and_ends_it(
    directory: MakeDirectory, tmp_path: Path
) -> None:
    dense = directory("dense", 0.001, DENSE, short=True)
    sparse = directory("sparse", 0.001, SPARSE)
    found = _compare(dense, sparse, QUICK, tmp_path / "out")
    assert found.rows == []
    assert [block.arm for block in found.blocks] == ["dense"]
    with pytest.raises(ComparisonError, match="2 x generated 1 tokens, not 10"):
        found.require_valid()


def test_a_server_that_contradicts_itself_is_refused(
    directory: MakeDirectory, tmp_path: Path
) -> None:
    sparse = directory("sparse", 0.001, SPARSE, metrics={"sparse_layers": 3})
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
    directory: MakeDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend_busy(monkeypatch, 99)
    dense, sparse = directory("dense", 0.001, DENSE), directory("sparse", 0.001, SPARSE)
    monkeypatch.setattr(machine.time, "sleep", lambda seconds: None)
    with pytest.raises(BusyMachineError, match=r"other processes use 50%.*--force"):
        _compare(dense, sparse, LoadPlan(), tmp_path / "out")


def test_disturbed_blocks_are_measured_again(
    directory: MakeDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The look before the start finds the machine calm, the first two attempts do not.
    _pretend_busy(monkeypatch, 2)
    monkeypatch.setattr(compare, "require_quiet", lambda force: None)
    monkeypatch.setattr(compare, "doubts", lambda blocks: [])  # this machine may be busy indeed
    plan = LoadPlan(concurrencies=(1,), requests=1, repeats=1, max_tokens=5)
    dense, sparse = directory("dense", 0.001, DENSE), directory("sparse", 0.001, SPARSE)
    found = _compare(dense, sparse, plan, tmp_path / "out")
    assert [b.samples_file for b in found.blocks] == [
        "dense-100-words-5-c1-r0-again2.jsonl",
        "sparse-100-words-5-c1-r0.jsonl",
    ]
    assert found.other_cpu_share == 0.0


def test_a_load_generator_that_distorts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "calibrate", lambda folder, concurrency: Bias(164.0, 90.0, 30.0))
    monkeypatch.setattr(compare, "require_quiet", lambda force: None)
    with pytest.raises(CalibrationError, match=r"164.0 ms on time to first token"):
        _compare(tmp_path, tmp_path, dataclasses.replace(QUICK, force=False), tmp_path / "out")


def test_raw_samples_need_a_folder_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").touch()
    with pytest.raises(ValueError, match="is not empty"):
        _compare(tmp_path, tmp_path, QUICK, tmp_path)


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
        {"rates": (0.0,)},
        {"rates": (1.0, 1.0)},
        {"request_timeout_s": 0.0},
        {"workers": 2},
        {"lengths": ((8, 8),), "prompts": Path("p.txt")},
        {"trace": Path("t.csv"), "rates": (1.0,)},
    ],
)
def test_plans_that_make_no_comparison_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|once|give one|one process"):
        LoadPlan(**changed).check()


def test_the_command_writes_the_result_file(
    directory: MakeDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dense, sparse = directory("dense", 0.002, DENSE), directory("sparse", 0.001, SPARSE)
    options = ["--concurrency", "1", "--requests", "1", "--repeats", "1", "--set", "max_tokens=5"]
    arguments = ["--dense", str(dense), "--sparse", str(sparse), *options, "--force", "--json"]
    done = CliRunner().invoke(app, ["bench", "serve", *arguments, "--result", "serve-x"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout.splitlines()[-1])
    (path,) = (tmp_path / "results").rglob("serve.json")
    published = tmp_path / "docs" / "results" / "serve-x.json"
    assert printed == json.loads(published.read_text())
    assert printed == json.loads(path.read_text()) | {"picture": "serve-x.svg"}
    ElementTree.parse(published.with_suffix(".svg"))
    assert published.with_suffix(".md").is_file()
    assert [row["arm"] for row in printed["rows"]] == ["dense", "sparse"]
    assert {"concurrency", "tokens_per_s", "ttft_p50_ms", "tpot_p95_ms", "ratio"} <= set(
        printed["rows"][0]
    )
    assert {"other_cpu_share", "machine", "servers", "calibration", "plan"} <= set(printed)
    assert "raw samples: results" in done.stdout
    assert path.with_name("report.html").is_file()


def test_the_command_ends_with_1_when_there_is_nothing_sparse(
    directory: MakeDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dense = directory("dense", 0.001, DENSE)
    both = ["--dense", str(dense), "--sparse", str(dense)]
    done = CliRunner().invoke(app, ["bench", "serve", *both, "--force"])
    assert done.exit_code == 1
    assert "no layer of" in done.stderr
    assert not (tmp_path / "docs").exists()


def test_masks_of_one_directory_share_a_server_and_name_their_masks(
    directory: MakeDirectory, tmp_path: Path
) -> None:
    dense, sparse = directory("dense", 0.001, DENSE), directory("sparse", 0.001, SPARSE)
    arms = [
        Arm.parse(f"dense={dense}"),
        Arm.parse(f"one={sparse}@one:a"),
        Arm.parse(f"two={sparse}@uniform:a,b"),
    ]
    plan = dataclasses.replace(QUICK, repeats=1, requests=6)
    found = compare_arms(arms, plan, tmp_path / "out")
    found.require_valid()
    assert len(list(found.folder.glob("server-*.log"))) == 2
    masks = {block.arm: set(block.summary.masks) for block in found.blocks}
    assert masks == {"dense": {"-"}, "one": {"a"}, "two": {"a", "b"}}
    assert found.servers["two"].arm == "two"
    # Warm-up and measured requests of both arms, ten tokens each.
    assert found.servers["one"].generated_tokens == 2 * (2 + 6) * 10


def test_a_server_that_runs_already_is_an_arm(directory: MakeDirectory, tmp_path: Path) -> None:
    running = directory("running", 0.001, SPARSE)
    with Server("running", running, tmp_path / "log") as server:
        server.wait_until_healthy()
        arms = [
            Arm.parse(f"dense={directory('dense', 0.001, DENSE)}"),
            Arm.parse(f"other={server.url}/#fake"),
        ]
        found = compare_arms(arms, dataclasses.replace(QUICK, repeats=1), tmp_path / "out")
    found.require_valid()
    assert [row.arm for row in found.rows] == ["dense", "other"]
    assert found.others["other"].models == ["fake"]
    assert found.others["other"].says["engine"]["sparse_layers"] == 14
    assert list(found.servers) == ["dense"]


def test_exact_lengths_are_loads_of_their_own(directory: MakeDirectory, tmp_path: Path) -> None:
    dense, sparse = directory("dense", 0.001, DENSE), directory("sparse", 0.001, SPARSE)
    plan = dataclasses.replace(QUICK, lengths=((9, 4), (20, 3)), repeats=1)
    found = _compare(dense, sparse, plan, tmp_path / "out")
    found.require_valid()
    measured = {
        (row.arm, row.lengths): (row.prompt_tokens, row.output_tokens) for row in found.rows
    }
    assert measured == {
        (arm, lengths): tokens
        for arm in ("dense", "sparse")
        for lengths, tokens in (("9/4", (9, 8)), ("20/3", (20, 6)))
    }


def test_a_trace_is_a_load(directory: MakeDirectory, tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    rows = [{"timestamp": 50 * i, "input_length": 9, "output_length": 4} for i in range(5)]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dense, sparse = directory("dense", 0.001, DENSE), directory("sparse", 0.001, SPARSE)
    plan = dataclasses.replace(QUICK, trace=trace, requests=None, repeats=1)
    found = _compare(dense, sparse, plan, tmp_path / "out")
    found.require_valid()
    assert {(row.point, row.requests) for row in found.rows} == {(LoadPoint("t.jsonl"), 5)}


def test_an_open_loop_has_rates_in_place_of_users(directory: MakeDirectory, tmp_path: Path) -> None:
    dense, sparse = directory("dense", 0.001, DENSE), directory("sparse", 0.001, SPARSE)
    plan = dataclasses.replace(QUICK, rates=(40.0,), requests=8, repeats=1)
    found = _compare(dense, sparse, plan, tmp_path / "out")
    found.require_valid()
    assert {row.point for row in found.rows} == {LoadPoint("5 words/10", rate=40.0)}
    assert [row.requests for row in found.rows] == [8, 8]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dense", "give NAME=DIR"),
        ("=x", "give NAME=DIR"),
        ("a=/nowhere", "there is no engine directory /nowhere"),
        ("a=http://", "no address"),
        ("a=http://key@host:1", "no address"),
        ("a=.@some", "mask mix"),
    ],
)
def test_arms_that_cannot_be_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arm.parse(text)


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a", "a"], "name each once"), (["a", "b"], "--reference 'dense'"), (["a/b"], "letters")],
)
def test_names_of_arms_are_checked(names: list[str], message: str, tmp_path: Path) -> None:
    arms = [Arm(name, url=f"http://127.0.0.1:{free_port()}") for name in names]
    with pytest.raises(ValueError, match=message):
        compare_arms(arms, QUICK, tmp_path / "out")


def test_a_server_at_an_address_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    arm = Arm.parse(f"dense=http://127.0.0.1:{free_port()}")
    with pytest.raises(ArmError, match="does not answer /v1/models"):
        compare_arms([arm], QUICK, tmp_path / "out")


def test_settings_of_a_load_are_read_as_text() -> None:
    settings = ["max_tokens=5", "endpoint=chat", "mask_prompts=a=x.txt", "mask_prompts=b=y.txt"]
    plan = read_plan({"concurrencies": (1,)}, settings)
    assert (plan.max_tokens, plan.endpoint, plan.concurrencies) == (5, "chat", (1,))
    assert plan.mask_prompts == ("a=x.txt", "b=y.txt")
    for wrong, message in (
        ("max_token=5", "one of seconds, max_tokens"),
        ("workers", "give NAME=VALUE"),
        ("endpoint=talk", "endpoint is 'talk'"),
        ("max_tokens=many", "max_tokens is 'many'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_plan({}, [wrong])
