"""A written checkpoint holds exactly the masked model, however it is cut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from engines.directory.checkpoint import Checkpoint
from engines.directory.families import FAMILIES as FAMILIES_KNOWN
from engines.errors import EngineDirectoryError
from engines.tensorrt_llm.checkpoint import write_checkpoint
from engines.tensorrt_llm.config import (
    ARCHITECTURES,
    REFUSED,
    Mapping,
    checkpoint_config,
    convertible_decoder,
)
from maskgen.format.mask import Mask
from tests.engines.tensorrt_llm.helpers import masked_state, random_mask, restore
from tests.tiny_model import make_tiny_llama

FAMILIES = {
    "llama": {"tie_word_embeddings": False},
    "tied": {"architecture": "llama", "tie_word_embeddings": True},
    "mistral": {"tie_word_embeddings": False, "head_dim": 32},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"tie_word_embeddings": False, "head_dim": 32},
    "gemma": {"head_dim": 32},
    "granite": {"residual_multiplier": 0.5, "logits_scaling": 2.0},
}
PROMPT = torch.tensor([[5, 17, 200, 31, 77, 4, 123]])


def _model(directory: Path, family: str, **settings: object) -> Path:
    merged = {"architecture": family, **FAMILIES[family], **settings}
    return make_tiny_llama(directory / family, **merged)


def _write(model: Path, out: Path, mask: Mask | None, mapping: Mapping, dtype: str) -> Path:
    out.mkdir()
    write_checkpoint(Checkpoint(model), mask, out, mapping=mapping, dtype=dtype)
    return out


def _logits(model: Path, state: dict[str, torch.Tensor]) -> torch.Tensor:
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    state = {name: tensor.float() for name, tensor in state.items()}
    if "lm_head.weight" not in state:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    network.load_state_dict(state, strict=True)
    with torch.no_grad():
        return network(PROMPT).logits


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("family", FAMILIES)
def test_put_together_again_it_is_the_masked_model(
    tmp_path: Path, family: str, tp: int, pp: int
) -> None:
    if family == "gemma" and pp > 1:
        pytest.skip("embedding and head are one tensor of one stage")
    model = _model(tmp_path, family)
    mask = random_mask(model, seed=tp)
    out = _write(model, tmp_path / "ck", mask, Mapping(tp, pp), "bfloat16")

    restored, expected = restore(out), masked_state(model, mask)
    for name, tensor in expected.items():
        if family == "gemma" and name.endswith("norm.weight"):  # 1 is added, and rounded to bf16
            assert torch.equal(restored[name], tensor + 1), name
            restored[name] = tensor
        assert torch.equal(restored[name].view(torch.int16), tensor.view(torch.int16)), name
    assert torch.equal(_logits(model, restored), _logits(model, expected))


def test_the_mask_is_really_applied(tmp_path: Path) -> None:
    model = _model(tmp_path, "llama")
    restored = restore(_write(model, tmp_path / "ck", random_mask(model), Mapping(2), "bfloat16"))
    original = load_file(model / "model.safetensors")
    weight = restored["model.layers.1.mlp.down_proj.weight"]
    assert (weight == 0).float().mean() == 0.5
    assert not torch.equal(weight, original["model.layers.1.mlp.down_proj.weight"])
    # No negative zeros: dropped weights are +0.0 bit for bit.
    assert (weight.view(torch.int16)[weight == 0] == 0).all()


def test_padded_vocabulary(tmp_path: Path) -> None:
    """A vocabulary that is no multiple of the ranks is filled up with zero rows."""
    model = _model(tmp_path, "llama", vocab_size=301)
    out = _write(model, tmp_path / "ck", None, Mapping(2), "bfloat16")
    with safe_open(out / "rank1.safetensors", "pt") as file:
        head = file.get_tensor("lm_head.weight")
    assert head.shape == (151, 64)
    assert not head[150].any()
    assert head[149].any()


def test_float16_is_rounded_and_says_when_it_overflows(tmp_path: Path) -> None:
    model = _model(tmp_path, "llama")
    out = _write(model, tmp_path / "ck", None, Mapping(), "float16")
    restored = restore(out)["model.layers.0.self_attn.q_proj.weight"]
    original = load_file(model / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    assert torch.equal(restored, original.to(torch.float16))

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    with torch.no_grad():
        network.model.norm.weight[3] = 1e6
    network.save_pretrained(model)
    with pytest.raises(EngineDirectoryError, match=r"model\.norm\.weight .*use dtype bfloat16"):
        _write(model, tmp_path / "over", None, Mapping(), "float16")


def test_metadata_names_model_and_mask(tmp_path: Path) -> None:
    model = _model(tmp_path, "llama")
    mask = random_mask(model)
    out = _write(model, tmp_path / "ck", mask, Mapping(), "bfloat16")
    with safe_open(out / "rank0.safetensors", "np") as file:
        metadata = file.metadata()
    assert metadata["mask_digest"] == mask.digest
    assert metadata["base_digest"] == mask.base_digest


def test_config_has_what_tensorrt_llm_reads(tmp_path: Path) -> None:
    model = _model(tmp_path, "qwen2", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    out = _write(model, tmp_path / "ck", None, Mapping(2, 2), "bfloat16")
    config = json.loads((out / "config.json").read_text())
    assert config["architecture"] == "Qwen2ForCausalLM"
    assert config["rotary_base"] == 5e5
    assert config["rotary_scaling"] is None
    assert config["mapping"] == {"world_size": 4, "tp_size": 2, "pp_size": 2}
    assert config["qwen_type"] == "qwen2"
    assert config["attn_bias"] is True
    assert config["seq_length"] == 512


def test_llama3_position_scaling_is_kept() -> None:
    hf = {
        "model_type": "llama",
        "vocab_size": 10,
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "hidden_act": "silu",
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    }
    config = checkpoint_config(convertible_decoder(hf), "bfloat16", Mapping())
    assert config["rotary_base"] == 500000.0
    assert config["rotary_scaling"] == {
        "type": "llama3",
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,  # the context, where config.json is silent
    }
    assert config["num_key_value_heads"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is not supported.*llama, mistral, qwen2, qwen3"),
        ({"model_type": "olmo2"}, "'olmo2' cannot be built.*1.2 does not have it.*gemma, granite$"),
        ({"model_type": "phi3"}, "'phi3' cannot be built .*exporter.*refuses it"),
        (
            {"model_type": "gemma", "num_key_value_heads": 4, "tie_word_embeddings": False},
            "tie_word_embeddings is false",
        ),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "'yarn'"),
        ({"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial"),
    ],
)
def test_models_that_would_lose_something_are_refused(change: dict, message: str) -> None:
    hf = {
        "model_type": "llama",
        "vocab_size": 10,
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "hidden_act": "silu",
    }
    with pytest.raises(EngineDirectoryError, match=message):
        convertible_decoder(hf | change)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (Mapping(3), "num_attention_heads 4 is not a multiple of tp_size 3"),
        (Mapping(8), "num_attention_heads 4"),
        (Mapping(1, 3), "num_hidden_layers 2 is not a multiple of pp_size 3"),
    ],
)
def test_impossible_splits_are_refused(tmp_path: Path, mapping: Mapping, message: str) -> None:
    with pytest.raises(EngineDirectoryError, match=message):
        _write(_model(tmp_path, "llama"), tmp_path / "ck", None, mapping, "bfloat16")


def test_gemma_is_not_cut_into_stages(tmp_path: Path) -> None:
    with pytest.raises(EngineDirectoryError, match="one stage: use pp_size 1"):
        _write(_model(tmp_path, "gemma"), tmp_path / "ck", None, Mapping(1, 2), "bfloat16")


def test_factors_and_activations_are_said() -> None:
    hf = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1, "vocab_size": 10}
    granite = hf | {
        "model_type": "granite",
        "attention_multiplier": 0.5,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.25,
        "logits_scaling": 4.0,
    }
    found = checkpoint_config(convertible_decoder(granite), "bfloat16", Mapping())
    assert found["attention_multiplier"] == 0.5 * 16**0.5
    assert found["embedding_multiplier"] == 3.0
    assert found["residual_multiplier"] == 0.25
    assert found["output_multiplier_scale"] == 0.25
    gemma = hf | {"model_type": "gemma", "num_key_value_heads": 4}
    found = checkpoint_config(convertible_decoder(gemma), "bfloat16", Mapping(2))
    assert found["hidden_act"] == "gelu_pytorch_tanh"
    assert found["share_embedding_table"] is True
    assert found["use_parallel_embedding"] is True


def test_every_known_family_is_converted_or_refused_with_a_reason() -> None:
    assert ARCHITECTURES.keys() | REFUSED.keys() == FAMILIES_KNOWN.keys()
    assert not ARCHITECTURES.keys() & REFUSED.keys()


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = _model(tmp_path, "llama")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(EngineDirectoryError, match=r"gate_proj.*\(128, 64\).*\(64, 64\)"):
        _write(model, tmp_path / "ck", None, Mapping(), "bfloat16")


def test_memory_holds_one_tensor_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every source is released once its target is written, before the next is read."""
    held: list[str] = []
    most = 0

    class Watched(Checkpoint):
        def tensor(self, name: str) -> np.ndarray:
            nonlocal most
            held.append(name)
            most = max(most, len(held))
            return super().tensor(name)

        def release(self, name: str) -> None:
            held.remove(name)
            super().release(name)

    out = tmp_path / "ck"
    out.mkdir()
    model = _model(tmp_path, "llama")
    write_checkpoint(Watched(model), random_mask(model), out, mapping=Mapping(2))
    assert most == 3  # q, k and v
    assert not held
