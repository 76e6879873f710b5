"""Every family that is declared for vLLM, in vLLM beside transformers. Needs vLLM.

A model of a family at a time: a process can hold only one, and starting takes the time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engines.directory.build import BuildRequest
from engines.native.kernels import isa
from engines.vllm_plugin.build import TESTED_MODEL_TYPES, build
from tests.engines.conftest import random_mask
from tests.engines.oracle import Oracle
from tests.engines.vllm_plugin.cases import prompt_of
from tests.tiny_model import make_tiny_llama

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),  # vLLM's and torch's own
]

# Log-prob. vLLM computes in bf16, transformers here in float32, which is 0.01 to 0.02 apart, and up
# to 0.031 (Gemma 2) where the processor multiplies in bf16; a window that is one position off adds
# 0.03 on average, and 0.2 at worst.
MARGIN, MEAN_MARGIN = 0.15, 0.04 if isa() == "avx512_bf16" else 0.025
WINDOW, TOKENS = 24, 16

Rows = npt.NDArray[np.float64]

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {},
    "qwen3": {"head_dim": 64, "tie_word_embeddings": False},
    "gemma": {"head_dim": 64},
    "gemma2": {"head_dim": 64, "sliding_window": WINDOW, "query_pre_attn_scalar": 32},
    "gemma3_text": {
        "head_dim": 64,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 32,
        "num_hidden_layers": 6,
    },
    "smollm3": {"num_hidden_layers": 4},
    "granite": {
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.25,
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
    },
    "olmo2": {},
    "olmo3": {"num_hidden_layers": 4, "sliding_window": WINDOW},
    "cohere": {"logit_scale": 0.5},
    # vLLM lets its windows see one position more than transformers: within a window they agree.
    "cohere2": {"logit_scale": 0.5, "sliding_window": 128, "num_hidden_layers": 4},
    "stablelm": {"use_qkv_bias": True, "partial_rotary_factor": 0.5},
    "phi3": {"partial_rotary_factor": 0.5},
    "glm": {"head_dim": 32, "attention_bias": True, "partial_rotary_factor": 0.5},
    "glm4": {"head_dim": 32, "attention_bias": True, "partial_rotary_factor": 0.5},
}
"""`model_type` -> what makes its tiny model tell."""


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_PLUGINS", "twofour")
    yield
    from vllm.distributed import cleanup_dist_env_and_memory

    gc.collect()
    cleanup_dist_env_and_memory()


def test_every_family_has_a_case() -> None:
    assert CONFIGS.keys() == set(TESTED_MODEL_TYPES)


@pytest.mark.parametrize("kind", TESTED_MODEL_TYPES)
def test_log_probs_and_greedy_tokens_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    from vllm import LLM, SamplingParams

    sizes = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "initializer_range": 0.1,
    }
    model = make_tiny_llama(tmp_path / "model", architecture=kind, **sizes | CONFIGS[kind])
    mask = random_mask(model, tmp_path / "general.safetensors")
    build(BuildRequest(model, "tiny", {"general": mask}, tmp_path / "vllm"))
    # Before vLLM, whose Transformers backend rewrites the model's class for the whole process.
    prompts = [prompt_of(seed) for seed in range(3)]
    expected = [greedy_rows(Oracle(model, mask), prompt) for prompt in prompts]
    llm = LLM(
        str(tmp_path / "vllm"),
        enforce_eager=True,
        max_model_len=128,
        kv_cache_memory_bytes=64 << 20,
        block_size=32,
        seed=0,
    )
    sampling = SamplingParams(temperature=0, max_tokens=TOKENS, prompt_logprobs=0, ignore_eos=True)
    found = llm.generate([{"prompt_token_ids": list(p)} for p in prompts], sampling)
    del llm
    apart: list[float] = []
    for prompt, rows, output in zip(prompts, expected, found, strict=True):
        mine = output.prompt_logprobs
        apart += [
            mine[at][token].logprob - rows[at - 1][token]
            for at, token in enumerate(prompt)
            if at > 0
        ]
        check_greedy(output.outputs[0].token_ids, rows[len(prompt) - 1 :])
    assert len(apart) == 3 * 39
    assert np.abs(apart).max() < MARGIN
    assert np.abs(apart).mean() < MEAN_MARGIN


def greedy_rows(oracle: Oracle, prompt: tuple[int, ...]) -> Rows:
    """Log-probs after every token of the prompt and of its greedy continuation."""
    tokens = list(prompt)
    for _ in range(TOKENS):
        tokens.append(int(oracle.log_probs(tokens)[-1].argmax()))
    return oracle.log_probs(tokens)


def check_greedy(tokens: Sequence[int], rows: Rows) -> None:
    """The same tokens, until a choice of transformers is a toss-up."""
    for token, row in zip(tokens, rows, strict=False):
        if token != row.argmax():
            assert row[token] > row.max() - MARGIN
            return
