"""Other ways to run vLLM, same answers: two workers, compiled, other layers, other values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from engines.quantisation.options import ValueOptions
from engines.registry import open_engine
from tests.engines.vllm_plugin.cases import (
    MARGIN,
    assert_agree,
    greedy,
    make_directories,
    prompt_of,
)

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore"),  # vLLM's and torch's own
]

# Activations are rounded to 8 bits there: where they differ in the last place of bf16, products may
# differ by a step.
LOWBIT_MARGIN = 0.3

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tensor-parallel": ({"tensor_parallel_size": 2, "enforce_eager": True}, {}),
    "partly-dense": ({"enforce_eager": True}, {"leave_out": "k_proj"}),
    "untied-biases": (
        {"enforce_eager": True},
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    ),
    "compiled": ({}, {}),
    "int8-compiled": ({}, {"values": ValueOptions(values="int8")}),
    "int4-tensor-parallel": (
        {"tensor_parallel_size": 2, "enforce_eager": True},
        {
            "values": ValueOptions(values="int4"),
            "pattern": "16:32",
            "leave_out": "k_proj",
            "tie_word_embeddings": False,
        },
    ),
}
"""Engine options, and what makes the model another one."""


@pytest.mark.parametrize("case", CASES)
async def test_both_masks_agree_with_the_reference(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, model = CASES[case]
    cores = sorted(os.sched_getaffinity(0))
    if "tensor_parallel_size" in options:
        if len(cores) < 2:
            pytest.skip("two workers need two cores")
        # All cores are on one NUMA node here, so vLLM must be told which worker gets which.
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", f"{cores[0]}|{cores[1]}")
    directories = make_directories(tmp_path, **model)
    reference = open_engine(directories["reference"])
    engine = open_engine(directories["vllm"], kv_cache_bytes=64 << 20, max_model_len=256, **options)
    try:
        for mask in ("general", "french", "general"):
            for seed in range(2):
                prompt = prompt_of(seed)
                ours = await greedy(engine, f"{mask}-{seed}", prompt, mask, 16)
                expected = await greedy(reference, f"{mask}-{seed}", prompt, mask, 16)
                assert_agree(ours, expected, LOWBIT_MARGIN if "values" in model else MARGIN)
        assert engine.stats().mask_switches == 2
    finally:
        await engine.close()
        await reference.close()
