"""config.json means what transformers makes of it: fields, tensors, frequencies, log-probs."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from engines.cpu.build import build
from engines.cpu.engine import CpuEngine
from engines.directory.build import BuildRequest
from engines.directory.checkpoint import Checkpoint
from engines.directory.decoder_config import MODEL_TYPES, decoder_config, read_decoder_config
from engines.errors import EngineDirectoryError
from engines.sampling import SamplingParams
from maskgen.format.experts import EXPERTS
from tests.engines.directory.decoder_configs import decoder_configs
from tests.engines.oracle import ROUTE_MARGIN, Oracle, answers
from tests.tiny_model import make_tiny_llama, write_tiny_model

# The engine rounds activations to bf16, the oracle does not: log-probs of these models differ by
# 0.01 on average. A wrong window, frequency or eps moves them by 0.2 to 1.
MEAN_TOLERANCE = 0.04
# Shrinking would build hundreds of models; the drawn configuration is small as it is.
NO_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)


def check_against_transformers(config: dict[str, Any]) -> None:
    """Compare every field of `DecoderConfig` with the model that transformers makes."""
    found = decoder_config(config)
    expected = AutoConfig.for_model(**config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(expected)
    shapes = stored_shapes(model)
    if expected.tie_word_embeddings:
        del shapes["lm_head.weight"]
    assert found.tensor_shapes() == shapes
    assert found.tied == expected.tie_word_embeddings
    norm = model.model.norm
    eps = [getattr(norm, name, None) for name in ("variance_epsilon", "eps")]
    assert found.eps in eps
    assert found.context == expected_context(expected)
    assert found.heads == expected.num_attention_heads
    assert found.windows == expected_windows(model, found.context)
    rotary = type(model.model.rotary_emb)(expected)
    names = [""] if len(found.ropes) == 1 else ["full_attention_", "sliding_attention_"]
    for number, name in enumerate(names):
        if number not in found.rope_of_layer and not hasattr(rotary, f"{name}inv_freq"):
            continue
        frequencies, factor = found.ropes[number].frequencies()
        inverse = getattr(rotary, f"{name}inv_freq").numpy()
        np.testing.assert_allclose(frequencies, inverse, rtol=2e-6)
        assert factor == pytest.approx(getattr(rotary, f"{name}attention_scaling"))


def stored_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of what transformers would write: fused experts a matrix each."""
    shapes: dict[str, tuple[int, ...]] = {}
    names = EXPERTS.get(model.config.model_type)
    for name, tensor in model.state_dict().items():
        if names is None or ".mlp." not in name:
            shapes[name] = tuple(tensor.shape)
            continue
        name = name.replace(".mlp.", f".{names.block}.")
        place, _, part = name.rpartition(".")
        if not place.endswith(".experts"):
            shapes[name] = tuple(tensor.shape)
            continue
        experts, outputs, inputs = tensor.shape
        for expert in range(experts):
            if part == "down_proj":
                shapes[f"{place}.{expert}.{names.down}.weight"] = outputs, inputs
            else:
                for half in (names.gate, names.up):
                    shapes[f"{place}.{expert}.{half}.weight"] = outputs // 2, inputs
    return shapes


def expected_context(config: Any) -> int:
    """Up to which transformers has one set of frequencies for all positions."""
    ropes = config.rope_parameters
    longropes = [
        rope
        for rope in ([ropes] if "rope_type" in ropes else ropes.values())
        if rope["rope_type"] == "longrope"
    ]
    name = "original_max_position_embeddings"
    contexts = [rope.get(name) or getattr(config, name) for rope in longropes]
    return min(config.max_position_embeddings, *contexts, 1 << 62)


def expected_windows(model: Any, context: int) -> tuple[int, ...]:
    config = model.config
    if config.model_type in ("mistral", "mixtral", "phi3"):
        widths = [config.sliding_window] * config.num_hidden_layers
    else:
        widths = [getattr(layer.self_attn, "sliding_window", None) for layer in model.model.layers]
    return tuple(0 if w is None or w >= context else w for w in widths)


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_an_empty_configuration_is_the_architectures_own(kind: str) -> None:
    check_against_transformers({"model_type": kind})


@pytest.mark.parametrize("kind", MODEL_TYPES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_fields_mean_what_transformers_makes_of_them(kind: str, data: st.DataObject) -> None:
    check_against_transformers(data.draw(decoder_configs(kind)))


@pytest.mark.parametrize("kind", MODEL_TYPES)
@settings(max_examples=5, deadline=None, derandomize=True, phases=NO_SHRINKING)
@given(st.data())
def test_log_probs_are_those_of_transformers(kind: str, data: st.DataObject) -> None:
    config = data.draw(decoder_configs(kind))
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_model(Path(folder) / "model", config)
        build(BuildRequest(model, "tiny", {}, Path(folder) / "engine"))
        tokens = np.random.default_rng(0).integers(0, 300, decoder_config(config).context - 1)
        found = asyncio.run(prompt_logprobs(Path(folder) / "engine", tokens.tolist()))
        oracle = Oracle(model)
        rows = oracle.log_probs(tokens.tolist())
    expected = rows[np.arange(len(tokens) - 1), tokens[1:]]
    clear = oracle.route_margins[:-1] >= ROUTE_MARGIN
    assert clear.mean() > 0.5
    assert np.abs(np.array(found) - expected)[clear].mean() <= MEAN_TOLERANCE


async def prompt_logprobs(directory: Path, tokens: list[int]) -> list[float]:
    """Log-probabilities of all tokens but the first."""
    engine = CpuEngine(directory, kv_bytes=8 << 20)
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, prompt_logprobs=0)
    (answer,) = await answers(engine, tokens, params)
    await engine.close()
    assert answer.prompt_logprobs is not None
    return [entry.logprob for entry in answer.prompt_logprobs[1:] if entry is not None]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"model_type": "gpt2"}, "'gpt2' is not supported.*llama, mistral"),
    "no architecture": ({"model_type": None}, "None is not supported"),
    "no name": ({"model_type": ["llama"]}, r"\['llama'\] is not supported"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    "count": ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    "many layers": ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000, expected"),
    "wide heads": ({"head_dim": 1 << 40}, "head_dim is 1099511627776, expected"),
    "flag as a count": ({"hidden_size": True}, "hidden_size is True"),
    "null size": ({"intermediate_size": None}, "intermediate_size is None"),
    "heads": ({"num_key_value_heads": 3}, "num_attention_heads 32 is no multiple of .* 3"),
    "odd heads": ({"head_dim": 15}, "head_dim 15 is odd"),
    "uneven heads": ({"hidden_size": 100}, "hidden_size 100 is no multiple"),
    "eps": ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6'"),
    "flag": ({"attention_bias": "yes"}, "attention_bias is 'yes'"),
    "both directions": ({"is_causal": False}, "is_causal"),
    "unlike layers": ({"per_layer_config": {"0": {"head_dim": 8}}}, "per_layer_config"),
    "window": ({"model_type": "mistral", "sliding_window": 0}, "sliding_window is 0"),
    "no window": (
        {"model_type": "qwen2", "layer_types": ["sliding_attention"] * 32},
        "names sliding_attention, but",
    ),
    "kind of layer": (
        {"model_type": "qwen3", "layer_types": ["chunked_attention"] * 32},
        "'chunked_attention' is not supported",
    ),
    "layers": ({"model_type": "qwen3", "layer_types": ["full_attention"]}, "num_hidden_layers 32"),
    "theta": ({"rope_theta": 0}, "rope_theta is 0"),
    "huge theta": ({"rope_theta": 10**400}, "rope_theta is 1000"),
    "partial rotation": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    "rope by layer type": (
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        "one rope for all layers",
    ),
    "more experts than there are": (
        {"model_type": "olmoe", "num_experts": 4},
        "num_experts_per_tok 8 is more than the 4 experts of num_experts",
    ),
    "layers without experts": (
        {"model_type": "qwen3_moe", "mlp_only_layers": ["0"]},
        r"mlp_only_layers \['0'\] is no list of layers",
    ),
    "clipped values": (
        {"model_type": "olmoe", "clip_qkv": 8.0},
        "clip_qkv 8.0 is not supported for olmoe, only None",
    ),
    "other mixtures": (
        {"model_type": "qwen2_moe"},
        "'qwen2_moe' is not supported: a mixture of experts of a kind that is not run",
    ),
    "a cap that is not applied": (
        {"model_type": "gemma3_text", "attn_logit_softcapping": 50.0},
        "attn_logit_softcapping 50.0 is not supported for gemma3_text, only None",
    ),
    "both ways": (
        {"model_type": "gemma2", "use_bidirectional_attention": True},
        "use_bidirectional_attention True is not supported for gemma2, only False",
    ),
    "layers that turn": (
        {"model_type": "smollm3", "no_rope_layers": [1, 0]},
        "no_rope_layers is no list of 0 and 1 for num_hidden_layers 36",
    ),
    "too many dimensions": (
        {"model_type": "stablelm", "partial_rotary_factor": 1.5},
        "partial_rotary_factor is 1.5",
    ),
    "rope is no object": ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'"),
}
REFUSED_ROPES: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"rope_type": "su"}, "rope_type 'su' is not supported.*yarn, longrope"),
    "no factor": ({"rope_type": "linear"}, "factor of the linear rope is None"),
    "factor": ({"rope_type": "dynamic", "factor": -1.0}, "factor of the dynamic rope is -1.0"),
    "llama3": (
        {"rope_type": "llama3", "factor": 2.0},
        "low_freq_factor of the llama3 rope is None",
    ),
    "band": (
        {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
        "high_freq_factor 4.0 .* must exceed",
    ),
    "theta of one": ({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0}, "has no frequencies"),
    "no rotations": (
        {
            "type": "yarn",
            "factor": 2.0,
            "beta_fast": 1e300,
            "original_max_position_embeddings": 1e-30,
        },
        "yarn rope has no frequencies: math domain error",
    ),
    "tiny factor": ({"type": "linear", "factor": 1e-60}, "frequencies that are no numbers"),
    "short factors": ({"type": "longrope", "factor": 2.0}, "short_factor of the longrope rope"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_fields_that_no_engine_follows_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineDirectoryError, match=message):
        decoder_config({"model_type": "llama"} | change)


@pytest.mark.parametrize(("rope", "message"), REFUSED_ROPES.values(), ids=REFUSED_ROPES)
def test_ropes_that_no_engine_turns_are_refused_at_build(
    rope: dict[str, Any], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    change_config(model, rope_scaling=rope)
    with pytest.raises(EngineDirectoryError, match=message):
        build(BuildRequest(model, "tiny", {}, tmp_path / "engine"))
    assert not (tmp_path / "engine").exists()


def change_config(model: Path, **fields: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_weights(model: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(model / "model.safetensors")
    change(weights)
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def own_head(weights: dict[str, torch.Tensor]) -> None:
    table = weights["model.embed_tokens.weight"].float()
    weights["lm_head.weight"] = (table + torch.randn_like(table) * 0.1).bfloat16()


def equal_head(weights: dict[str, torch.Tensor]) -> None:
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()


def head_alone(weights: dict[str, torch.Tensor]) -> None:
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")


@pytest.mark.parametrize(
    ("change", "tied"), [(own_head, False), (equal_head, True), (head_alone, True)]
)
def test_the_head_is_the_one_that_transformers_takes(
    change: Callable[..., None], tied: bool, tmp_path: Path
) -> None:
    model = make_tiny_llama(tmp_path / "model", tie_word_embeddings=True)
    change_weights(model, change)
    checkpoint = Checkpoint(model)
    assert ("lm_head.weight" in checkpoint) is not tied
    build(BuildRequest(model, "tiny", {}, tmp_path / "engine"))
    assert read_decoder_config(tmp_path / "engine").tied is tied
    tokens = list(range(3, 80))
    found = asyncio.run(prompt_logprobs(tmp_path / "engine", tokens))
    rows = Oracle(model).log_probs(tokens)
    expected = rows[np.arange(len(tokens) - 1), tokens[1:]]
    assert np.abs(np.array(found) - expected).mean() <= 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), r"1 are missing, such as model\.norm\.weight"),
        (
            lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}),
            r"1 do not belong to it, such as .*q_proj\.bias",
        ),
        (
            lambda w: w.update({"model.norm.weight": torch.ones(3)}),
            r"norm\.weight has shape \(3,\), config\.json says \(64,\)",
        ),
    ],
)
def test_other_weights_are_refused(
    change: Callable[..., Any], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    change_weights(model, change)
    with pytest.raises(EngineDirectoryError, match=message):
        build(BuildRequest(model, "tiny", {}, tmp_path / "engine"))


def test_stored_rotary_frequencies_are_no_weights(tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_weights(model, lambda w: w.update({name: torch.ones(8)}))
    build(BuildRequest(model, "tiny", {}, tmp_path / "engine"))
