"""GGUF files as model directories: the same model as the one that was written."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GgufConfig

from maskgen.gguf_model.convert import write_model_directory
from tests.maskgen.gguf_model.tiny_gguf import TINY, make_tiny, quantised, write_tiny_gguf

TOKENS = torch.arange(3, 67)[None]
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.5}


def logits(model: Path, **source: Any) -> torch.Tensor:
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, **source)
    with torch.no_grad():
        found: torch.Tensor = loaded(TOKENS).logits
    return found


def converted(model: Path, tmp_path: Path, **options: Any) -> Path:
    file = write_tiny_gguf(model, tmp_path / "model.gguf", **options)
    write_model_directory(file, tmp_path / "converted")
    return tmp_path / "converted"


@pytest.mark.parametrize("kind", TINY)
def test_every_architecture_comes_back(kind: str, tmp_path: Path) -> None:
    model = make_tiny(kind, tmp_path / "model")
    directory = converted(model, tmp_path)
    before, after = (load_file(path / "model.safetensors") for path in (model, directory))
    assert before.keys() == after.keys()
    # Gains of Gemma lose last bits where 1 is added to them.
    for name, values in before.items():
        torch.testing.assert_close(after[name], values.float(), rtol=0, atol=1e-6, msg=name)
    torch.testing.assert_close(logits(directory), logits(model), rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "gemma3_text"])
def test_transformers_reads_the_same_weights(kind: str, tmp_path: Path) -> None:
    directory = converted(make_tiny(kind, tmp_path / "model"), tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file="model.gguf",
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    ).state_dict()
    for name, values in load_file(directory / "model.safetensors").items():
        torch.testing.assert_close(values, theirs[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e3, "factor": 2.0}}),
        ("qwen2", {"rope_parameters": YARN | {"original_max_position_embeddings": 32}}),
        ("gemma2", {"num_hidden_layers": 46, "query_pre_attn_scalar": 16}),
        ("granite", {"attention_bias": True, "mlp_bias": True}),
    ],
)
def test_variants_come_back(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    model = make_tiny(kind, tmp_path / "model", **config)
    directory = converted(model, tmp_path)
    torch.testing.assert_close(logits(directory), logits(model), rtol=0, atol=2e-4)


def test_llama3_frequencies_are_known_by_what_they_are_made_of(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = make_tiny(
        "llama", tmp_path / "model", head_dim=128, num_hidden_layers=1, rope_parameters=rope
    )
    base = 1 / 500000.0 ** (np.arange(0, 128, 2) / 128)
    turns = 8192 * base / (2 * np.pi)
    smooth = (turns - 1) / 3
    divisors = np.where(turns > 4, 1, np.where(turns < 1, 8, 1 / ((1 - smooth) / 8 + smooth)))
    frequencies = {"rope_freqs.weight": divisors.astype(np.float32)}
    directory = converted(model, tmp_path, tensors=frequencies)
    found = json.loads((directory / "config.json").read_text())
    assert found["rope_scaling"] == {k: v for k, v in rope.items() if k != "rope_theta"}
    torch.testing.assert_close(logits(directory), logits(model), rtol=0, atol=2e-4)


def test_factors_of_longrope_come_back(tmp_path: Path) -> None:
    factors = {"long_factor": [1.0, 2.5, 4.0, 9.0], "short_factor": [1.0, 1.0, 1.5, 2.0]}
    model = make_tiny(
        "phi3",
        tmp_path / "model",
        rope_parameters=LONG | factors | {"original_max_position_embeddings": 128},
        original_max_position_embeddings=128,
        partial_rotary_factor=0.5,
    )
    tensors = {
        f"rope_factors_{name}.weight": np.array(factors[f"{name}_factor"], np.float32)
        for name in ("long", "short")
    }
    directory = converted(model, tmp_path, tensors=tensors)
    torch.testing.assert_close(logits(directory), logits(model), rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", gguf.quants._type_traits)
def test_quantised_weights_are_rounded_to_bf16(
    kind: gguf.GGMLQuantizationType, tmp_path: Path
) -> None:
    model = make_tiny(
        "llama", tmp_path / "model", hidden_size=256, intermediate_size=256, num_hidden_layers=1
    )
    directory = converted(model, tmp_path, kind=kind)
    found = load_file(directory / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    before = load_file(model / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    stored = quantised(before.float().numpy(), kind)
    expected = gguf.quants.dequantize(stored, kind).astype(ml_dtypes.bfloat16)
    assert found.dtype == torch.bfloat16
    assert np.ptp(expected.astype(np.float32)) > 0
    np.testing.assert_array_equal(found.float().numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_plain_weights_keep_their_type(name: str, tmp_path: Path) -> None:
    model = make_tiny("llama", tmp_path / "model")
    directory = converted(model, tmp_path, kind=gguf.GGMLQuantizationType[name])
    config = json.loads((directory / "config.json").read_text())
    dtype = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[name]
    assert config["dtype"] == dtype
    found = load_file(directory / "model.safetensors").values()
    assert {str(values.dtype) for values in found} == {f"torch.{dtype}"}


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    model = make_tiny("llama", tmp_path / "model", vocab_size=200_000, num_hidden_layers=1)
    file = write_tiny_gguf(model, tmp_path / "model.gguf")
    tracemalloc.start()
    write_model_directory(file, tmp_path / "converted")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.8 * (tmp_path / "converted" / "model.safetensors").stat().st_size


def test_the_ends_of_texts_and_turns_are_told_apart(tmp_path: Path) -> None:
    model = make_tiny("llama", tmp_path / "model")
    directory = converted(model, tmp_path, tokenizer__ggml__eot_token_id=0)
    settings = json.loads((directory / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [2, 0]
