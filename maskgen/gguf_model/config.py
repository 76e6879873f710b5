"""The config.json of a model that a GGUF file holds, in the notation of transformers 4 and 5."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from maskgen.gguf_model.architectures import ARCHITECTURES, GgufArchitecture
from maskgen.gguf_model.header import GgufError, GgufHeader
from maskgen.gguf_model.rope import rope_scaling

EMBEDDING, HEAD = "token_embd.weight", "output.weight"

_FIELDS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_READ = {
    *("attention.head_count_kv", "attention.key_length", "attention.value_length", "vocab_size"),
    *("rope.freq_base", "rope.dimension_count", "expert_count", "attention.causal"),
    *("attention.sliding_window_pattern", "tensor_data_layout"),
}
"""Keys that count or are checked, beside those that become a field of the same meaning."""
_ROPE_SCALING = "rope.scaling."
_TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def architecture_of(header: GgufHeader) -> GgufArchitecture:
    """What the file's architecture is like.

    Raises:
        GgufError: it is unknown, or the file holds no model.
    """
    name, kind = header.metadata.get("general.architecture"), header.metadata.get("general.type")
    if kind not in (None, "model"):
        raise GgufError(f"{header.path} holds {kind!r} and no model (general.type)")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise GgufError(
            f"{header.path} has the architecture {name!r}, which is not supported (supported:"
            f" {', '.join(ARCHITECTURES)})"
        )
    return ARCHITECTURES[name]


def model_config(header: GgufHeader) -> dict[str, Any]:
    """config.json, without the type of the weights.

    Raises:
        GgufError: the architecture is unknown; or a key is missing, malformed, or says what no
            field of config.json can.
    """
    architecture = architecture_of(header)
    keys = Keys(header)
    keys.refuse_unknown(architecture)
    config: dict[str, Any] = {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        **{field: keys.count(key) for key, field in _FIELDS.items()},
        "vocab_size": _vocabulary(header),
        "tie_word_embeddings": HEAD not in header.tensors,
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        **architecture.fixed,
        **{field: keys[key] for key, field in architecture.fields.items() if key in keys},
        **_biases(header, architecture),
        **_tokens(header),
    }
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    config["num_key_value_heads"] = keys.count("attention.head_count_kv", heads)
    config["head_dim"] = keys.count("attention.key_length", hidden // heads)
    if keys.count("attention.value_length", config["head_dim"]) != config["head_dim"]:
        raise GgufError(f"{header.path}: values are not as wide as keys (attention.value_length)")
    epsilon = "rms_norm_eps" if "rms" in architecture.epsilon else "layer_norm_eps"
    config[epsilon] = keys.number(architecture.epsilon)
    _turned_share(config, keys, architecture)
    config |= rope_scaling(header, architecture, config, keys.scaling())
    if architecture.full_every:
        config["layer_types"] = _layer_types(config, keys, architecture)
    if architecture.model_type in ("gemma2", "gemma3_text"):
        config["query_pre_attn_scalar"] = _gemma_scale(config)
    return config


class Keys:
    """The metadata under the architecture's own prefix."""

    def __init__(self, header: GgufHeader) -> None:
        self._path = header.path
        self._prefix = f"{header.metadata['general.architecture']}."
        self._found = {
            key.removeprefix(self._prefix): value
            for key, value in header.metadata.items()
            if key.startswith(self._prefix)
        }

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Any:
        return self._found[key]

    def get(self, key: str, absent: Any = None) -> Any:
        return self._found.get(key, absent)

    def count(self, key: str, absent: int | None = None) -> int:
        value = self._found.get(key, absent)
        if type(value) is not int or value < 1:
            raise self._malformed(key, value, "a number from 1")
        return value

    def number(self, key: str, absent: float | None = None) -> float:
        value: Any = self._found.get(key, absent)
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise self._malformed(key, value, "a positive number")
        return float(value)

    def scaling(self) -> dict[str, Any]:
        """What is said of rope scaling, by the rest of the key."""
        return {
            key.removeprefix(_ROPE_SCALING): value
            for key, value in self._found.items()
            if key.startswith(_ROPE_SCALING)
        }

    def refuse_unknown(self, architecture: GgufArchitecture) -> None:
        """Raise GgufError for keys that may change the model and are not understood."""
        known = {*_FIELDS, *_READ, *architecture.fields, architecture.epsilon}
        for key, value in self._found.items():
            if key not in known and not key.startswith(_ROPE_SCALING):
                raise GgufError(
                    f"{self._path}: {self._prefix}{key} ({value!r:.60}) is not understood for this"
                    " architecture"
                )
        for key, only in (("expert_count", 0), ("attention.causal", True)):
            if self._found.get(key, only) != only:
                raise GgufError(
                    f"{self._path}: {self._prefix}{key} {self._found[key]!r} is not supported, only"
                    f" {only}"
                )

    def _malformed(self, key: str, value: Any, expected: str) -> GgufError:
        return GgufError(f"{self._path}: {self._prefix}{key} is {value!r:.60}, expected {expected}")


def _vocabulary(header: GgufHeader) -> int:
    if EMBEDDING not in header.tensors:
        raise GgufError(f"{header.path} lacks the tensor {EMBEDDING}")
    return header.tensors[EMBEDDING].shape[0]


def _biases(header: GgufHeader, architecture: GgufArchitecture) -> dict[str, bool]:
    return {
        flag: any(f"blk.0.{linear}.bias" in header.tensors for linear in linears)
        for flag, linears in architecture.biases.items()
        if flag
    }


def _tokens(header: GgufHeader) -> dict[str, Any]:
    """Special tokens; the end of a turn beside that of a text, where they differ."""
    metadata = header.metadata
    found = {
        f"{name}_token_id": metadata.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in _TOKENS.items()
        if name != "unk"
    }
    turn = metadata.get("tokenizer.ggml.eot_token_id")
    if turn is not None and turn != found["eos_token_id"]:
        ends = [token for token in (found["eos_token_id"], turn) if token is not None]
        found["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    return {name: value for name, value in found.items() if value is not None}


def _turned_share(config: dict[str, Any], keys: Keys, architecture: GgufArchitecture) -> None:
    head = config["head_dim"]
    turned = keys.count("rope.dimension_count", head)
    if architecture.partial:
        config["partial_rotary_factor"] = turned / head
    elif turned != head:
        raise GgufError(
            f"rope.dimension_count {turned} is not attention.key_length {head}: ropes of a part of"
            f" the head are not supported for {config['model_type']}"
        )


def _layer_types(
    config: Mapping[str, Any], keys: Keys, architecture: GgufArchitecture
) -> list[str]:
    every, layers = architecture.full_every, config["num_hidden_layers"]
    pattern = keys.get("attention.sliding_window_pattern", every)
    if isinstance(pattern, tuple) and len(pattern) == layers:
        windowed = [bool(one) for one in pattern]
    elif type(pattern) is int and pattern > 0:
        windowed = [bool((layer + 1) % pattern) for layer in range(layers)]
    else:
        raise GgufError(f"attention.sliding_window_pattern is {pattern!r:.60}, expected a number")
    return ["sliding_attention" if one else "full_attention" for one in windowed]


def _gemma_scale(config: Mapping[str, Any]) -> int:
    """llama.cpp knows the models of 27B by their layers, and no file says their scale."""
    large = {"gemma2": 46, "gemma3_text": 62}[config["model_type"]]
    if config["num_hidden_layers"] == large:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])
