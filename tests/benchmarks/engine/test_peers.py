"""Peers as arms: programs and libraries that stand in for llama.cpp and vLLM."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks.common.arm_process import ArmError, Worker
from benchmarks.common.waves import Wave
from benchmarks.engine.arms import peer_commands
from benchmarks.engine.llama_worker import run_batched_bench
from benchmarks.engine.speed import SpeedPlan, measure

PLAN = SpeedPlan(lengths=((8, 30),), concurrencies=(3,), repeats=1, threads=1)

# What llama-batched-bench prints for these arguments; the first line is its log.
BATCHED_BENCH = """#!/bin/sh
echo "loading $2"
echo '{"pp": 8, "tg": 30, "pl": 3, "n_threads": 1, "t_pp": 0.5, "t_tg": 1.5}'
"""

# ik_llama.cpp's knows no output format: its table stands among the messages.
IK_BATCHED_BENCH = """#!/bin/sh
echo "$@" | grep -q -- -rtr || exit 2
cat >&2 <<'END'
loading
|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |
|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|
|     8 |     30 |    3 |    114 |    0.500 |    48.00 |    1.500 |    60.00 |    2.000 |    57.00 |
END
"""

VLLM = {
    "vllm/__init__.py": """
import os
from types import SimpleNamespace as AsyncEngineArgs, SimpleNamespace as SamplingParams
assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
""",
    "vllm/inputs.py": "TokensPrompt = dict",
    "vllm/v1/__init__.py": "",
    "vllm/v1/engine/__init__.py": "",
    "vllm/v1/engine/async_llm.py": """
from types import SimpleNamespace
class AsyncLLM:
    @classmethod
    def from_engine_args(cls, args):
        assert (args.dtype, args.max_model_len) == ("float32", 39), args
        return cls()
    async def generate(self, prompt, sampling, key):
        assert len(prompt["prompt_token_ids"]) == 8
        for made in (*range(10, sampling.max_tokens, 10), sampling.max_tokens):
            yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=[0] * made)])
    def shutdown(self):
        pass
""",
}


def peers(*given: str, model: Path | None = None) -> dict[str, list[str]]:
    return peer_commands(given, model, PLAN, dtype="float32", binding="nobind")


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / "llama-batched-bench"
    program.parent.mkdir()
    program.write_text(BATCHED_BENCH)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(3 << 20))
    return path


def test_llama_cpp_is_an_arm(gguf: Path) -> None:
    found = run_batched_bench(gguf, 1, Wave(8, 30, 3))
    assert found["tokens_per_s"] == 3 * 30 / 2.0
    assert found["prompt_tokens_per_s"] == 3 * 8 / 0.5
    assert (found["decode_tokens_per_s"], found["ttft_ms"], found["tpot_ms"]) == (60, 500, 50)
    (command,) = peers(f"llama.cpp-bf16={gguf}").values()
    with Worker("llama.cpp-bf16", command) as worker:
        assert worker.ready["weights_mib"] == 3.0
        wave = {"prompt_tokens": 8, "output_tokens": 30, "concurrency": 3}
        assert worker.ask("wave", wave) == found
        assert worker.ask("memory")["rss_mib"] > 0


def test_ik_llama_cpp_is_an_arm(gguf: Path) -> None:
    program = Path(os.environ["PATH"].partition(":")[0]) / "ik-llama-batched-bench"
    program.write_text(IK_BATCHED_BENCH)
    program.chmod(0o755)
    (command,) = peers(f"ik-q4_0={gguf}").values()
    with Worker("ik-q4_0", command) as worker:
        wave = {"prompt_tokens": 8, "output_tokens": 30, "concurrency": 3}
        assert worker.ask("wave", wave)["tokens_per_s"] == 3 * 30 / 2.0


def test_figures_of_other_waves_than_asked_for_are_refused(gguf: Path) -> None:
    # The warm-up asks for one sequence, which this program does not measure.
    with pytest.raises(ArmError, match=r"(?s)llama.cpp-bf16 arm ended .*asked for \(8, 30, 1\)"):
        list(measure(peers(f"llama.cpp-bf16={gguf}"), PLAN, print))


def test_vllm_is_an_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in VLLM.items():
        path = tmp_path / "vllm-environment" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "vllm-environment"))
    commands = peers(f"vllm-dense={sys.executable}", model=tmp_path)
    ((row,),) = measure(commands, PLAN, lambda line: None)
    assert (row["arm"], row["dtype"], row["concurrency"]) == ("vllm-dense", "float32", 3)
    assert row["tokens_per_s"] > 0
    assert row["rss_mib"] > 0


def test_peers_that_cannot_run_are_refused(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"--peer 'vllm=x': give vllm-dense=PYTHON"):
        peers("vllm=x")
    with pytest.raises(ValueError, match=r"llama.cpp-TYPE=FILE.gguf, and a file that exists"):
        peers("llama.cpp-q4_0=nowhere.gguf")
    with pytest.raises(ValueError, match="needs --model"):
        peers(f"vllm-dense={sys.executable}")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match=r"needs llama\.cpp's llama-batched-bench on the PATH"):
        peers(f"llama.cpp-q4_0={gguf}")
