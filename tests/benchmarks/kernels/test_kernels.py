"""The kernel benchmark: what it refuses, what it writes, what it calls a miss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")

from benchmarks.kernels import lowbit, measure, report
from engines.native import layout
from engines.native.kernels import supported_isas
from twofour.cli import app

FIELDS = {"n", "k", "tokens", "threads", "isa", "kernel"} | {
    "sparse_ms",
    "dense_own_ms",
    "dense_onednn_ms",
    "sparse_gbps",
    "read_gbps",
}


def row(**changes: object) -> measure.KernelRow:
    fields = {
        "n": 4096,
        "k": 4096,
        "tokens": 1,
        "threads": 2,
        "isa": "avx512_bf16",
        "kernel": "s",
        "dense_kernel": "d",
        "sparse_ms": 1.0,
        "dense_own_ms": 1.7,
        "dense_onednn_ms": 3.0,
        "sparse_gbps": 28.0,
        "dense_own_gbps": 29.0,
        "read_gbps": 30.0,
        "rounds": 9,
        "other_cpu_share": 0.0,
    }
    return measure.KernelRow(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "_cache_bytes", lambda: 1 << 16)
    monkeypatch.setattr(measure, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(measure, "READ_SLICE", 1 << 18)
    monkeypatch.setattr(measure, "measure_alternation", lambda threads, seconds: [])
    return tmp_path


def run(*arguments: str) -> list[str]:
    done = CliRunner().invoke(app, ["bench", "kernels", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def test_it_writes_what_it_prints(small_machine: Path) -> None:
    options = ["--shapes", "64x64", "--tokens", "1,8", "--threads", "1", "--seconds", "0.01"]
    result = json.loads(run(*options, "--isa", "all", "--force", "--json")[-1])
    assert result == json.loads((small_machine / "docs/results/kernels.json").read_text())
    assert [(r["isa"], r["tokens"]) for r in result["rows"]] == [
        (isa, tokens) for isa in supported_isas() for tokens in (1, 8)
    ]
    for found in result["rows"]:
        assert set(found) >= FIELDS
        assert found["sparse_gbps"] == pytest.approx(4 * 2 * 576 / found["sparse_ms"] / 1e6)


def test_earlier_rows_are_kept_on_request(small_machine: Path) -> None:
    options = ["--shapes", "64x64", "--threads", "1", "--seconds", "0.01", "--force"]
    run(*options, "--tokens", "1,2")
    run(*options, "--tokens", "2,4", "--keep")
    rows = json.loads((small_machine / "docs/results/kernels.json").read_text())["rows"]
    assert [found["tokens"] for found in rows] == [1, 2, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "64x30"], "multiple of 4"),
        (["--shapes", "64"], "pairs of numbers from 1"),
        (["--shapes", "64x36", "--lowbit"], "multiple of 32"),
        (["--lowbit", "--plot"], "leave out one of"),
        (["--tokens", "0"], "numbers from 1"),
        (["--isa", "mmx"], "this machine has"),
    ],
)
def test_bad_options_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(app, ["bench", "kernels", *arguments], catch_exceptions=False)


def test_a_wrong_kernel_is_no_result(small_machine: Path) -> None:
    layer = measure.Layer(64, 64)
    layer.sparse[0].data[65] ^= 0x40  # an exponent
    with pytest.raises(RuntimeError, match="wrong for 64 x 64"):
        measure._arms(layer, 2, 1, "portable")


def test_lowbit_rows_share_their_rounds(small_machine: Path) -> None:
    options = ["--lowbit", "--shapes", "64x64", "--tokens", "1,8", "--threads", "1"]
    options += ["--block", "32", "--minima", "--seconds", "0.01", "--isa", supported_isas()[-1]]
    result = json.loads(run(*options, "--force", "--json")[-1])
    assert result == json.loads((small_machine / "docs/results/kernels-lowbit.json").read_text())
    rows = result["rows"]
    assert [(r["tokens"], r["values"], r["pattern"], r["minima"]) for r in rows] == [
        (tokens, values, pattern, values == "int4")
        for tokens in (1, 8)
        for pattern in ("2:4", "16:32")
        for values in ("int8", "int4")
    ]
    for found in rows:
        assert set(found) >= FIELDS | {"torch_int4pack_ms"}
        size = layout.packed_bytes(
            lowbit.LAYOUTS[found["values"], found["pattern"]], 64, 64, 32, found["minima"]
        )
        assert found["sparse_gbps"] == pytest.approx(size / found["sparse_ms"] / 1e6)
    assert len({r["dense_onednn_ms"] for r in rows if r["tokens"] == 1}) == 1
    page = (small_machine / "docs/results/kernels-lowbit.md").read_text()
    assert page.count("| 64x64 |") == len(rows)


def test_a_wrong_lowbit_kernel_is_no_result(small_machine: Path) -> None:
    layer = lowbit.LowbitLayer(64, 64, 64, minima=False)
    layer.packed["int4", "2:4"][0].data[3] = 0x7B  # a scale of 2^15
    x = np.ones((2, 64), np.float32).astype(layout.BF16)
    with pytest.raises(RuntimeError, match="SPARSE24_INT4 kernel is wrong for 64 x 64"):
        layer.check(x, 1, "portable")


def test_lowbit_misses_are_named() -> None:
    good = {
        "n": 4096,
        "k": 4096,
        "tokens": 1,
        "threads": 2,
        "isa": "avx512_bf16",
        "values": "int4",
        "pattern": "2:4",
        "sparse_ms": 1.0,
        "sparse_bf16_ms": 1.8,
        "torch_int4pack_ms": 2.5,
        "sparse_gbps": 25.0,
        "read_gbps": 30.0,
    }
    assert lowbit.misses([good]) == []
    slow = good | {"sparse_bf16_ms": 0.9, "isa": "avx2"}
    narrow = good | {"sparse_gbps": 20.0, "torch_int4pack_ms": 1.5}
    lines = lowbit.misses([slow, narrow, good | {"pattern": "16:32", "sparse_gbps": 22.0}])
    assert [line.partition(": ")[2] for line in lines] == [
        "0.90x 2:4 in bf16, aimed at never slower",
        "67% of read bandwidth, aimed at 80%",
        "1.50x torch's int4pack, aimed at 2x",
        "73% of read bandwidth, aimed at 75%",
    ]


def test_misses_are_named() -> None:
    good = row()
    assert report.misses([good]) == []
    assert good.speedup == 1.7
    slow = row(dense_onednn_ms=1.5)
    narrow = row(sparse_gbps=20.0)
    batch = row(tokens=128, sparse_ms=2.0)
    avx2 = row(isa="avx2", dense_own_ms=1.3)
    lines = report.misses([good, slow, narrow, batch, avx2])
    assert [line.partition(": ")[2] for line in lines] == [
        "1.50x, aimed at 1.6x",
        "67% of read bandwidth, aimed at 90 %",
        "0.85x, aimed at 0.95x",
        "1.30x its own dense kernel, aimed at 1.4x",
    ]
    assert report.misses([row(n=64, sparse_ms=9.0)]) == []


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "results" / "roofline.png"
    report.plot_roofline([row(), row(tokens=512, sparse_ms=40.0)], path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [found.name for found in path.parent.iterdir()] == ["roofline.png"]
    with pytest.raises(ValueError, match="16 MB"):
        report.plot_roofline([row(n=64)], path)
