"""Models in torch: which directories load, and which tokens and windows they take."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from maskgen.format.model_directory import ModelDirectoryError
from maskgen.format.tokenizer import ModelTokenizer
from maskgen.prune import PruneSettings, prune
from maskgen.texts.self_text import write_self_texts
from maskgen.texts.text_sets import TextSet
from maskgen.torch_model import TorchScorer, check_tokens, context_length, load_model
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama

Weights = dict[str, torch.Tensor]
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    return make_tiny_llama(tmp_path / "model")


def change_weights(directory: Path, change: Callable[[Weights], Any]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def change_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_compressed_weights_are_not_replaced_by_random_ones(model_dir: Path) -> None:
    def compress(weights: Weights) -> None:
        prefix, weight = UP.removesuffix(".weight"), weights.pop(UP)
        n, k = weight.shape
        weights[f"{prefix}.compressed"] = weight[:, : k // 2].contiguous()
        weights[f"{prefix}.bitmask"] = torch.zeros(n, k // 8, dtype=torch.uint8)
        weights[f"{prefix}.shape"] = torch.tensor([n, k])

    change_weights(model_dir, compress)
    with pytest.raises(ModelDirectoryError, match=r"1 are missing.*3 do not belong"):
        load_model(model_dir, "fp32")
    sparsity = {"format": "sparse-24-bitmask", "sparsity_structure": "2:4"}
    method = {"quant_method": "compressed-tensors", "sparsity_config": sparsity}
    change_json(model_dir / "config.json", quantization_config=method)
    with pytest.raises(ModelDirectoryError, match="twofour import"):
        load_model(model_dir, "fp32")
    with pytest.raises(ModelDirectoryError, match="twofour import"):
        prune(model_dir, None, PruneSettings("magnitude"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(UP), rf"1 are missing, such as {UP}"),
        (lambda w: w.update(extra=torch.zeros(2)), "1 do not belong to it, such as extra"),
        (
            lambda w: w.update({UP: torch.zeros(4, 64)}),
            rf"{UP} has shape \(4, 64\), config.json says \(128, 64\)",
        ),
    ],
)
def test_other_weights_are_refused(
    model_dir: Path, change: Callable[[Weights], Any], message: str
) -> None:
    change_weights(model_dir, change)
    with pytest.raises(ModelDirectoryError, match=message):
        load_model(model_dir, "fp32")


def test_old_buffers_and_a_tied_head_are_no_other_weights(model_dir: Path) -> None:
    def add(weights: Weights) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    change_weights(model_dir, add)
    load_model(model_dir, "fp32")


def test_code_of_a_model_directory_is_never_run(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "open('ran', 'w')\n"
    (model_dir / "code.py").write_text(code)
    auto_map = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    change_json(model_dir / "config.json", model_type="new", auto_map=auto_map)
    asked: list[str] = []
    monkeypatch.setattr(builtins, "input", asked.append)
    monkeypatch.chdir(model_dir)
    with pytest.raises(ModelDirectoryError, match="transformers cannot load") as caught:
        load_model(model_dir, "fp32")
    assert "\n" not in str(caught.value)
    assert not asked
    assert not (model_dir / "ran").exists()


@pytest.fixture
def text() -> TextSet:
    return TextSet.of("sample", [SAMPLE_TEXT] * 8)


def test_a_token_beyond_the_vocabulary_is_named(model_dir: Path, text: TextSet) -> None:
    model = load_model(model_dir, "fp32")
    stray = model.config.vocab_size
    with pytest.raises(ValueError, match=f"token id {stray} is beyond .* vocabulary of {stray}"):
        TorchScorer(model)([1, stray])
    change_json(model_dir / "tokenizer_config.json", eos_token="<extra>")
    with pytest.raises(ValueError, match=f"'<extra>', whose id {stray} is beyond .* of {stray} "):
        prune(model_dir, text, PruneSettings("wanda", windows=2, length=32, dtype="fp32"))
    check_tokens(model, [1, stray - 1])


def test_a_window_beyond_the_positions_is_named(tmp_path: Path, text: TextSet) -> None:
    opt = make_tiny_llama(
        tmp_path / "opt",
        architecture="opt",
        ffn_dim=128,
        word_embed_proj_dim=64,
        max_position_embeddings=32,
    )
    message = r"window of 64 tokens.*context of 32 \(max_position_embeddings\)"
    with pytest.raises(ValueError, match=message):
        prune(opt, text, PruneSettings("wanda", windows=2, length=64, dtype="fp32"))
    model = load_model(opt, "fp32")
    assert context_length(model) == 32
    with pytest.raises(ValueError, match=message):
        TorchScorer(model)(range(64))
    assert TorchScorer(model)(range(32)) < 0
    texts = write_self_texts(model, ModelTokenizer(opt), tokens=40, seed=0)
    assert texts.texts
