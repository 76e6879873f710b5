"""`python -m benchmarks.gpu`: what it needs, its exit codes, its pages, and make gpu."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.compile_ahead import SHARED_LIMIT
from benchmarks.gpu.page import compiled_page, gpu_page

ROOT = Path(__file__).parents[3]

# A bare machine: of what is not ours, only these may be imported, and no native module.
BARE = """
import sys
from importlib.abc import MetaPathFinder
OURS = {"benchmarks", "engines", "maskgen"}
class Bare(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in FORBIDDEN or name in ("engines.native._native", "maskgen._native"):
            raise ModuleNotFoundError(f"no module named {name} on a bare machine")
FORBIDDEN = {
    "transformers", "vllm", "safetensors", "pydantic", "pydantic_settings", "psutil", "ml_dtypes",
    "tokenizers", "constriction", "jinja2", "llguidance", "typer", "rich", "filelock", "httpx",
    "platformdirs", "fastapi", "uvicorn", "prometheus_client", "scipy", "triton",
}
# torch takes some of these where they are installed, and does without them where not.
import torch, torch.sparse, torch.utils.checkpoint, torch.distributed, torch.optim
import torch._dynamo
for name in [n for n in sys.modules if n.partition(".")[0] in FORBIDDEN]:
    del sys.modules[name]
sys.meta_path.insert(0, Bare())
"""


def run_bare(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BARE + code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_it_needs_torch_and_numpy_and_triton_alone() -> None:
    done = run_bare(
        "import benchmarks.gpu.checks, engines.reference.semi_structured\n"
        "from benchmarks.gpu.compile_ahead import compile_kernels\n"
        "from benchmarks.gpu.learning import MaskLLMSettings, measure_learning\n"
        "from benchmarks.gpu.decoder import DecoderShape\n"
        "toy = DecoderShape(32, 32, 1, 2, 1, 32)\n"
        "cpu = torch.device('cpu')\n"
        "print(measure_learning(toy, cpu, MaskLLMSettings(3, 4), lambda: None)['steps'])\n"
        "from engines.vllm_plugin.cuda import pack_few_token\n"
        "kept, codes = torch.zeros(32, 64, dtype=torch.bfloat16), torch.zeros(32, 16).byte()\n"
        "print(pack_few_token(kept, codes).n)\n"
        "try:\n    compile_kernels()\nexcept ModuleNotFoundError as error:\n    print(error)\n"
    )
    expected = ["3", "32", "no module named triton on a bare machine"]
    assert done.stdout.splitlines() == expected, done.stderr[-2000:]


def test_a_missing_package_is_named() -> None:
    code = (
        "import sys, importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name: None if name == 'triton' else find(name)\n"
        "sys.argv = ['gpu']\nimport runpy\nrunpy.run_module('benchmarks.gpu', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stdout == "error: triton missing: pip install triton\n"


@pytest.mark.parametrize(("code", "accepted"), [(0, True), (3, True), (1, False), (2, False)])
def test_make_gpu_accepts_that_there_is_no_gpu(tmp_path: Path, code: int, accepted: bool) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
    python.chmod(0o755)
    # `make test` hands its own flags down, and a make below another says which folder it enters.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "gpu", f"GPU_PYTHON={python}"],
        cwd=ROOT, capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert (done.returncode == 0) is accepted, done.stderr
    assert done.stdout.splitlines()[0] == "-m benchmarks.gpu"
    assert ("no CUDA GPU here" in done.stdout) is (code == 3)


@pytest.mark.vllm
def test_without_a_gpu_it_compiles_and_interprets_and_says_so(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("no CUDA GPU: ")
    result = json.loads((tmp_path / "docs/results/gpu-compile.json").read_text())
    assert len(result["rows"]) == 4
    for row in result["rows"]:
        assert row["spills"] == 0
        assert row["shared_bytes"] <= SHARED_LIMIT[int(row["arch"].removeprefix("sm_"))]
    committed = json.loads((ROOT / "docs/results/gpu-compile.json").read_text())
    if committed["versions"]["triton"] == result["versions"]["triton"]:
        assert result["rows"] == committed["rows"], "run make gpu"


def result() -> dict[str, Any]:
    """A result as the command writes it, of a GPU that does not exist."""
    row = {"n": 4096, "k": 4096, "tokens": 1, "values": "bf16"}
    return {
        "command": "python -m benchmarks.gpu",
        "date": "2026-11-27T00:00:00+00:00",
        "machine": {"cpu": "X", "cores": 8, "memory_gib": 64.0, "system": "Linux"},
        "machine_class": "Imaginary 1000",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "data_digests": {},
        "rows": [
            {**row, "arm": "cuBLAS", "ms": 0.02, "gbps": 1600.0},
            {**row, "arm": "ours, few tokens", "ms": 0.0125, "gbps": 1500.0},
            {**row, "arm": "torch 2:4", "tokens": 64, "ms": 0.02, "gbps": 900.0},
        ],
        "gpu": {
            "name": "Imaginary 1000",
            "capability": "9.0",
            "memory_gib": 80.0,
            "processors": 100,
            "l2_mib": 50,
            "copy_gbps": 2000.0,
        },
        "missing": {"cuSPARSELt 2:4": "not compiled with it"},
        "left_out": ["8192x28672"],
        "tried": [
            {"n": 4096, "k": 4096, "tokens": 1, "rows": 8, "warps": 1, "stages": 3, "ms": 0.0125}
        ],
        "agreement": [
            {"kernel": "a", "n": 1, "k": 8, "tokens": 1, "worst": 0.5, "error": ""},
            {"kernel": "b", "n": 1, "k": 8, "tokens": 1, "worst": None, "error": "no such shape"},
        ],
        "swap": {"layers": 112, "from_device_ms": 1.5, "same_memory": True},
        "learning": {"error": "CUDA out of memory"},
    }


def test_the_page_of_a_gpu() -> None:
    page = gpu_page(result())
    assert page.startswith("# 2:4 on a GPU: Imaginary 1000\n")
    assert "| 4096x4096 | 1 | 0.0200 | 80 % | 1.60 | 75 % |  |  |" in page
    assert "| 4096x4096 | 64 |  |  |  |  |  | 45 % |" in page
    for line in (
        "- cuSPARSELt 2:4: not compiled with it",
        "No time was left for 8192x28672.",
        "| b | 1x8 | 1 | no such shape |",
        "- from device ms: 1.500",
        "- error: CUDA out of memory",
    ):
        assert line in page.splitlines()


def test_the_page_of_what_was_compiled() -> None:
    path = ROOT / "docs/results/gpu-compile.json"
    found = json.loads(path.read_text())
    assert compiled_page(found) == path.with_suffix(".md").read_text()
    kernels = {(row["kernel"], row["arch"]) for row in found["rows"]}
    assert kernels == {(k, a) for k in ("one_token", "few_tokens") for a in ("sm_80", "sm_90")}
