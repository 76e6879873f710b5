"""`twofour export`: GGUF files and plain checkpoints that others read as the masked model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from maskgen.format.mask_file import read_mask
from maskgen.format.tokenizer import ModelTokenizer
from maskgen.gguf_model.convert import write_model_directory
from tests.engines.conftest import random_mask
from tests.engines.oracle import Oracle
from tests.maskgen.gguf_model.tiny_gguf import TINY, make_tiny, write_tiny_gguf
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama
from twofour.cli import app

TOKENS = list(range(3, 67))


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["export", *map(str, arguments)])
    return result.exit_code, result.output if result.exit_code == 0 else str(result.exception)


def exported(model: Path, tmp_path: Path, *options: object) -> Path:
    code, output = run("--model", model, "--out", tmp_path / "out.gguf", *options)
    assert code == 0, output
    return tmp_path / "out.gguf"


def tensors(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for tensor in gguf.GGUFReader(file).tensors
    }


@pytest.mark.parametrize("kind", TINY)
def test_the_file_is_what_llama_cpps_converter_writes(kind: str, tmp_path: Path) -> None:
    model = make_tiny(kind, tmp_path / "model")
    mine = tensors(exported(model, tmp_path, "--type", "f32"))
    theirs = tensors(write_tiny_gguf(model, tmp_path / "theirs.gguf"))
    assert mine.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_array_equal(mine[name].reshape(values.shape), values, err_msg=name)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "phi3", "granite"])
def test_the_masked_model_comes_back(kind: str, tmp_path: Path) -> None:
    model = make_tiny(kind, tmp_path / "model")
    mask = random_mask(model, tmp_path / "mask.safetensors")
    write_model_directory(exported(model, tmp_path, "--mask", mask), tmp_path / "back")
    rows = Oracle(model, mask).log_probs(TOKENS)
    np.testing.assert_allclose(Oracle(tmp_path / "back").log_probs(TOKENS), rows, atol=2e-3)
    before, after = ModelTokenizer(model), ModelTokenizer(tmp_path / "back")
    assert after.encode(SAMPLE_TEXT) == before.encode(SAMPLE_TEXT)
    assert after.special_tokens == before.special_tokens


@pytest.mark.parametrize("name", ["q8_0", "q5_0", "q4_0", "f16"])
def test_what_a_mask_drops_is_zero(name: str, tmp_path: Path) -> None:
    model = make_tiny("llama", tmp_path / "model")
    mask = random_mask(model, tmp_path / "mask.safetensors")
    file = exported(model, tmp_path, "--mask", mask, "--type", name)
    keep = read_mask(mask).keep("model.layers.0.mlp.up_proj")
    values = tensors(file)["blk.0.ffn_up.weight"]
    assert (values[~keep] == 0).all()
    assert (values[keep] != 0).mean() > 0.8
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert types["blk.0.ffn_up.weight"] == name.upper()
    assert types["token_embd.weight"] == ("F16" if name == "f16" else "Q8_0")
    assert types["blk.0.attn_norm.weight"] == "F32"


@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e3, "factor": 2.0}},
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "head_dim": 128,
        },
        {"attention_bias": True, "tie_word_embeddings": False},
    ],
)
def test_variants_come_back(config: dict[str, Any], tmp_path: Path) -> None:
    model = make_tiny("llama", tmp_path / "model", **config)
    write_model_directory(exported(model, tmp_path), tmp_path / "back")
    rows = Oracle(model).log_probs(TOKENS)
    np.testing.assert_allclose(Oracle(tmp_path / "back").log_probs(TOKENS), rows, atol=2e-3)


def test_a_directory_is_a_plain_checkpoint(tmp_path: Path) -> None:
    model = make_tiny("qwen2", tmp_path / "model")
    mask = random_mask(model, tmp_path / "mask.safetensors")
    code, output = run("--model", model, "--mask", mask, "--out", tmp_path / "plain")
    assert code == 0, output
    keep = read_mask(mask).keep("model.layers.0.mlp.up_proj")
    values = load_file(tmp_path / "plain" / "model.safetensors")[
        "model.layers.0.mlp.up_proj.weight"
    ]
    assert (values.astype(np.float32)[~keep] == 0).all()
    with torch.no_grad():
        AutoModelForCausalLM.from_pretrained(tmp_path / "plain")(torch.tensor([TOKENS]))


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("gemma3_text", {"query_pre_attn_scalar": 8}, "in place of Scales"),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "windows is"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, "rope_of_layer is"),
        ("qwen3", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
         "'dynamic' is not exported"),
        ("olmo3", {}, "olmo3 models are not exported"),
        ("mistral", {"sliding_window": 24}, "windows is"),
    ],
)  # fmt: skip
def test_what_a_file_cannot_say_is_refused(
    kind: str, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make = make_tiny_llama
    model = make(tmp_path / "model", architecture=kind, **TINY.get(kind, {}) | config)
    code, output = run("--model", model, "--out", tmp_path / "out.gguf")
    assert code == 1
    assert message in output
    assert not list(tmp_path.glob("*.gguf"))
    assert not list(tmp_path.glob(".*"))


def test_bad_options_are_named(tmp_path: Path) -> None:
    model = make_tiny("llama", tmp_path / "model")
    other = make_tiny_llama(tmp_path / "other", seed=1)
    mask = random_mask(other, tmp_path / "mask.safetensors")
    (tmp_path / "there.gguf").touch()
    for options, message in (
        (["--out", tmp_path / "x.gguf", "--type", "q4_1"], "'q4_1' is none of f32"),
        (["--out", tmp_path / "there.gguf"], "exists already"),
        (["--out", tmp_path / "x"], "give --mask"),
        (["--out", tmp_path / "x.gguf", "--mask", mask], "belongs to the base model"),
    ):
        code, output = run("--model", model, *options)
        assert code == 1
        assert message in output


def test_a_type_is_of_gguf_files_alone(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model")
    code, said = run("--model", model, "--type", "q4_0", "--out", tmp_path / "new")
    assert code == 1
    assert "is of GGUF files" in said
    assert not (tmp_path / "new").exists()
