"""Engines of random weights: built in pieces, and loaded without a dense copy of a sparse layer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.engine.shaped_model import LLAMA_1B, build_engines
from engines.native import layout

SHAPE = {
    **LLAMA_1B,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 256,
}

LOADING = """
import json, sys
from pathlib import Path
from engines.cpu.model import CpuModel
from engines.cpu.opening import open_cpu_directory
from engines.native._native import Limits

def memory(name):
    status = Path("/proc/self/status").read_text()
    return int(status.partition(name + ":")[2].split()[0]) * 1024

directory = Path(sys.argv[1])
before = memory("VmRSS"), memory("RssAnon")
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
opened = open_cpu_directory(directory, map_weights=sys.argv[2] == "map")
model = CpuModel(opened.weights, opened.config, Limits(64, 1, 64, 4, 1))
for layer in model.base:
    for weights in layer:
        weights.data.sum()  # every page is resident
print(json.dumps({
    "weights": model.weight_bytes,
    "final": memory("VmRSS") - before[0],
    "peak": memory("VmHWM") - before[0],
    "private": memory("RssAnon") - before[1],
}))
"""


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build_engines(tmp_path_factory.mktemp("shaped"), SHAPE)


def load(directory: Path, how: str = "read") -> dict[str, int]:
    command = [sys.executable, "-c", LOADING, str(directory), how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("how", ["read", "map"])
def test_loading_holds_no_dense_copy(how: str, engines: tuple[Path, Path]) -> None:
    found = load(engines[0], how)
    # The smallest layers in question: one MLP matrix, dense.
    dense = layout.packed_bytes(layout.Layout.DENSE_BF16, 2048, 512)
    # What is mapped can be shared; what was read is this process's own, and there once.
    share = found["private"] / found["weights"]
    assert share < 0.25 if how == "map" else 1 <= share < 1.25
    assert found["peak"] - found["final"] < dense
    assert found["peak"] < 1.3 * found["final"]


def test_sparse_weights_are_smaller_by_what_two_of_four_save(engines: tuple[Path, Path]) -> None:
    sparse, dense = (load(directory) for directory in engines)
    head = layout.packed_bytes(layout.Layout.DENSE_BF16, 1024, 512)
    assert (sparse["weights"] - head) / (dense["weights"] - head) == pytest.approx(9 / 16)


def test_engines_that_are_there_are_not_built_again(engines: tuple[Path, Path]) -> None:
    stamps = [(arm / "engine.json").stat().st_mtime_ns for arm in engines]
    assert build_engines(engines[0].parent, SHAPE) == engines
    assert [(arm / "engine.json").stat().st_mtime_ns for arm in engines] == stamps
    assert sorted(p.name for p in engines[0].parent.iterdir()) == ["dense", "sparse"]
