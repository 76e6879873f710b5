"""Tiny GGUF files, written with the package `gguf` the way llama.cpp's converter does it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file
from tokenizers import Tokenizer

from tests.tiny_model import SPECIAL_TOKENS, make_tiny_llama

TINY: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 4},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {},
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "sliding_window": 24, "query_pre_attn_scalar": 32},
    "gemma3_text": {"head_dim": 32, "sliding_window": 24, "query_pre_attn_scalar": 32},
    "smollm3": {"num_hidden_layers": 4},
    "granite": {
        "residual_multiplier": 0.6,
        "attention_multiplier": 0.25,
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
    },
    "olmo2": {},
    "cohere": {"logit_scale": 0.5},
    "cohere2": {"logit_scale": 0.5, "sliding_window": 24, "num_hidden_layers": 5},
    "stablelm": {"use_qkv_bias": True, "partial_rotary_factor": 0.5},
    "phi3": {"sliding_window": 24},
    "glm4": {"head_dim": 16, "attention_bias": True, "partial_rotary_factor": 0.5},
}
"""`model_type` -> what makes its tiny model tell."""

NAMES = {"gemma3_text": "gemma3", "cohere": "command-r"}
"""`model_type` -> `general.architecture` where they differ."""

_PAIRED = ("llama", "smollm3", "granite")
_GEMMA = ("gemma", "gemma2", "gemma3_text")
_KEYS = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
    "logit_scale": "logit_scale",
    "use_parallel_residual": "use_parallel_residual",
}
_READ_BY = {
    "sliding_window": ("gemma2", "gemma3_text", "cohere2", "phi3"),
    "layer_norm_eps": ("cohere", "cohere2", "stablelm"),
}


def make_tiny(kind: str, directory: Path, **config: Any) -> Path:
    """A tiny model directory of that `model_type`."""
    return make_tiny_llama(directory, architecture=kind, **TINY[kind] | config)


def write_tiny_gguf(
    model: Path,
    out: Path,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    without: Collection[str] = (),
    tensors: Mapping[str, npt.NDArray[np.float32]] = {},
    **metadata: Any,
) -> Path:
    """Write what a tiny model directory holds.

    Args:
        model: the directory.
        out: the file.
        kind: type of the matrices.
        without: tensors and keys to leave out, by the file's names.
        tensors: further float32 tensors.
        metadata: further keys, `__` for a dot; others take the place of those that are there.
    """
    config = json.loads((model / "config.json").read_text())
    model_type = config["model_type"]
    name = NAMES.get(model_type, model_type)
    keys = _metadata(config) | vocabulary_of(model / "tokenizer.json")
    keys |= {f"{name}.{key}": value for key, value in _rope(config).items()}
    keys |= {key.replace("__", "."): value for key, value in metadata.items()}
    writer = gguf.GGUFWriter(out, keys.pop("general.architecture", name))
    for key, value in keys.items():
        if key not in without:
            _add(writer, key, value)
    for tensor, values in (_tensors(model, config, name) | dict(tensors)).items():
        if tensor in without:
            continue
        stored = kind if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(tensor, quantised(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def quantised(values: npt.NDArray[np.float32], kind: gguf.GGMLQuantizationType) -> npt.NDArray[Any]:
    """`values` in the file's type; where gguf has no quantiser, some bytes of the right number."""
    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        block, nbytes = gguf.GGML_QUANT_SIZES[kind]
        shape = (values.shape[0], values.shape[1] // block * nbytes)
        # As the first byte of a half-precision scale, 60 and more would make it large or no number.
        return np.random.default_rng(0).integers(0, 60, shape, np.uint8)


def vocabulary_of(file: Path) -> dict[str, Any]:
    """The metadata of a byte-level tokenizer.json."""
    tokenizer = Tokenizer.from_file(str(file))
    ids = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    merges = json.loads(file.read_text())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ids,
        "tokenizer.ggml.token_type": [3 if one in SPECIAL_TOKENS else 1 for one in ids],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": tokenizer.token_to_id("<|im_start|>"),
        "tokenizer.ggml.eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "tokenizer.ggml.padding_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }


def _metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    kind = config["model_type"]
    name = NAMES.get(kind, kind)
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    found = {
        f"{name}.{key}": config[field]
        for field, key in _KEYS.items()
        if config.get(field) is not None and kind in _READ_BY.get(field, (kind,))
    }
    found |= {f"{name}.attention.{part}_length": head for part in ("key", "value")}
    share = config.get("rope_parameters", {}).get("partial_rotary_factor", 1.0)
    return found | {f"{name}.rope.dimension_count": round(head * share)}


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    found: dict[str, Any] = {"rope.freq_base": rope["rope_theta"]} if "rope_theta" in rope else {}
    if rope.get("rope_type") in ("linear", "yarn"):
        found |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    if "original_max_position_embeddings" in rope and rope["rope_type"] != "llama3":
        found["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    return found


def _tensors(
    model: Path, config: Mapping[str, Any], name: str
) -> dict[str, npt.NDArray[np.float32]]:
    kind, heads = config["model_type"], config["num_attention_heads"]
    architecture = next(a for a, text in gguf.MODEL_ARCH_NAMES.items() if text == name)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    found = {}
    for tensor, stored in load_file(model / "model.safetensors").items():
        values = stored.float().numpy()
        if kind in _PAIRED and tensor.split(".")[-2] in ("q_proj", "k_proj"):
            count = heads if "q_proj" in tensor else config["num_key_value_heads"]
            parts = values.reshape(count, 2, values.shape[0] // count // 2, *values.shape[1:])
            values = np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(values.shape)
        if kind in _GEMMA and tensor.endswith("norm.weight"):
            values = values + 1
        target = names.get_name(tensor, (".weight", ".bias"))
        assert target is not None, tensor
        found[target] = values
    return found


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)
