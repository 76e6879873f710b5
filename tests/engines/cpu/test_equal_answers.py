"""DESIGN's rule for equal answers: the CPU engine against transformers, per architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.cpu.build import build
from engines.cpu.engine import CpuEngine
from engines.directory.build import BuildRequest
from engines.native import kernels
from engines.sampling import SamplingParams
from tests.engines.oracle import Oracle, answers, check_greedy, many
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama

# Activations are rounded to bf16 before every product, which the float32 oracle does not do, and
# the random weights (0.3 each) amplify that: log-probs differ by 0.03 on average, 0.35 at most. A
# wrong frequency, window or bias moves them by more than 0.5 on average.
MARGIN = 0.5
TOLERANCE = 0.5
MEAN_TOLERANCE = 0.06

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama-tied": {"architecture": "llama"},
    "llama-untied-biases": {
        "architecture": "llama",
        "tie_word_embeddings": False,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama3-rope": {"architecture": "llama", "rope_parameters": LLAMA3_ROPE},
    "linear-rope": {
        "architecture": "llama",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    },
    "yarn-rope": {"architecture": "llama", "rope_parameters": YARN_ROPE},
    "odd-sizes": {
        "architecture": "llama",
        "hidden_size": 60,
        "intermediate_size": 100,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
    },
    "many-heads": {
        "architecture": "llama",
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 64,
    },
    "mistral-window": {"architecture": "mistral", "sliding_window": 40},
    "qwen2": {"architecture": "qwen2"},
    "qwen3": {"architecture": "qwen3", "head_dim": 32, "tie_word_embeddings": False},
    "gemma2": {"architecture": "gemma2", "head_dim": 32, "sliding_window": 40},
    "gemma3": {"architecture": "gemma3_text", "head_dim": 32, "sliding_window": 40},
    "smollm3": {"architecture": "smollm3", "no_rope_layers": [1, 0]},
    "granite": {
        "architecture": "granite",
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.25,
    },
    "olmo2": {"architecture": "olmo2"},
    "olmo3-window": {"architecture": "olmo3", "sliding_window": 40},
    "cohere2": {"architecture": "cohere2", "sliding_window": 40, "logit_scale": 0.8},
    "stablelm": {"architecture": "stablelm", "use_qkv_bias": True},
    "phi3": {"architecture": "phi3", "partial_rotary_factor": 0.5, "sliding_window": 40},
    "glm4": {"architecture": "glm4", "head_dim": 32},
    "mixtral": {
        "architecture": "mixtral",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 40,
    },
    "qwen3-moe": {
        "architecture": "qwen3_moe",
        "head_dim": 16,
        "num_experts": 5,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 36,
        "norm_topk_prob": True,
        "num_hidden_layers": 3,
        "mlp_only_layers": [1],
    },
    "olmoe": {"architecture": "olmoe", "num_experts": 6, "num_experts_per_tok": 2},
}


def prompts_for(engine: CpuEngine) -> list[list[int]]:
    """Prompts of 1, a few and some hundred tokens."""
    text = engine.codec.encode(SAMPLE_TEXT)
    return [text[:1], text[3:10], text[20:37], text[:150], (text * 2)[:290]]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("models")

    def make(name: str) -> Path:
        path = folder / name
        return path if path.exists() else make_tiny_llama(path, **MODELS[name])

    return make


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("name", MODELS)
async def test_alone_and_batched_follow_the_oracle(
    name: str,
    sparse: bool,
    model_of: Callable[[str], Path],
    mask_of: Callable[..., Path],
    tmp_path: Path,
) -> None:
    model = model_of(name)
    mask = mask_of(model) if sparse else None
    build(BuildRequest(model, "tiny", {"general": mask} if mask else {}, tmp_path / "engine"))
    engine = CpuEngine(tmp_path / "engine", kv_bytes=32 << 20, step_tokens=64)
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logprobs=0)
    prompts = prompts_for(engine)
    alone = [(await answers(engine, prompt, params, salt="alone"))[0] for prompt in prompts]
    batched = await many(engine, prompts, params)
    await engine.close()
    oracle = Oracle(model, mask)
    steps, unclear, error = 0, 0, 0.0
    for prompt, one, other in zip(prompts, alone, batched, strict=True):
        agreement = check_greedy(oracle, prompt, one, margin=MARGIN, tolerance=TOLERANCE)
        check_greedy(oracle, prompt, other, margin=MARGIN, tolerance=TOLERANCE)
        steps += agreement.steps
        unclear += agreement.unclear
        error += agreement.error
    assert steps == 24 * len(prompts)
    assert error / steps <= MEAN_TOLERANCE
    assert unclear < 0.75 * steps, "the model is too undecided to test anything"


@pytest.mark.parametrize("isa", kernels.supported_isas())
async def test_every_instruction_set_follows_the_oracle(
    isa: str, tiny_model: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    # The mask leaves one kind of layer dense: both layouts run in one engine.
    mask = mask_of(tiny_model, leave_out="gate_proj")
    build(BuildRequest(tiny_model, "tiny", {"general": mask}, tmp_path / "engine"))
    engine = CpuEngine(tmp_path / "engine", kv_bytes=8 << 20, isa=isa)
    assert engine.describe().isa == isa
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True, logprobs=0)
    prompts = prompts_for(engine)
    found = await many(engine, prompts, params)
    await engine.close()
    oracle = Oracle(tiny_model, mask)
    for prompt, answer in zip(prompts, found, strict=True):
        check_greedy(oracle, prompt, answer, margin=MARGIN, tolerance=TOLERANCE)


async def test_prompt_logprobs_follow_the_oracle(
    tiny_model: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    mask = mask_of(tiny_model)
    build(BuildRequest(tiny_model, "tiny", {"general": mask}, tmp_path / "engine"))
    engine = CpuEngine(tmp_path / "engine", kv_bytes=8 << 20)
    prompt = engine.codec.encode(SAMPLE_TEXT)[:200]
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=3)
    (answer,) = await answers(engine, prompt, params)
    await engine.close()
    assert answer.prompt_logprobs is not None
    assert len(answer.prompt_logprobs) == len(prompt)
    assert answer.prompt_logprobs[0] is None
    rows = Oracle(tiny_model, mask).log_probs(prompt)
    errors = []
    for position, found in enumerate(answer.prompt_logprobs[1:], start=1):
        assert found is not None
        assert found.token_id == prompt[position]
        errors.append(abs(found.logprob - rows[position - 1, prompt[position]]))
        assert len(found.top) == 3
    assert max(errors) <= TOLERANCE
    assert sum(errors) / len(errors) <= MEAN_TOLERANCE
