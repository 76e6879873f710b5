"""What a Hugging Face `config.json` says about a Llama-family decoder, for every engine.

A field means what transformers 5 makes of it, in the notation of version 4 or 5; a field that is
absent has the architecture's own default (`configuration_llama.py` and its like). What an engine
cannot run, it refuses by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.directory.rope import Rope, read_rope
from engines.errors import EngineDirectoryError, as_engine_directory_error
from maskgen.format.json_file import read_json
from maskgen.format.model_directory import CONFIG_FILE, ModelDirectoryError
from maskgen.format.weight_files import EMBEDDING, HEAD

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a decoder layer, in the order of the native decoder."""

FINAL_NORM = "model.norm.weight"

# Far beyond any model; what a damaged file may say must not fill the memory.
_MOST, _MOST_LAYERS = 1 << 24, 10_000

# None: as many key-value heads as attention heads, and a head_dim of hidden_size over the latter.
_COMMON = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _COMMON
    | {
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
    },
    "mistral": _COMMON
    | {
        "vocab_size": 32000,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
    "qwen2": _COMMON
    | {
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
    },
    "qwen3": _COMMON
    | {
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "head_dim": 128,
    },
}
MODEL_TYPES = tuple(_DEFAULTS)
"""The `model_type`s that are understood."""


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and variants of a Llama-family decoder.

    Attributes:
        model_type: one of `MODEL_TYPES`.
        context: most positions of a sequence.
        windows: per layer, how many positions attention sees (0: all).
        head_norms: whether queries and keys are RMS-normalised per head (Qwen3).
        biases: linear layers that have a bias, of those in `LINEARS`.
        tied: the output head is the embedding.
        rope: rotary position embedding.
    """

    model_type: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    eps: float
    context: int
    windows: tuple[int, ...]
    head_norms: bool
    biases: tuple[str, ...]
    tied: bool
    rope: Rope

    def shape(self, linear: str) -> tuple[int, int]:
        """(outputs, inputs) of a linear layer in `LINEARS`."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (q, self.hidden),
            "k_proj": (kv, self.hidden),
            "v_proj": (kv, self.hidden),
            "o_proj": (self.hidden, q),
            "gate_proj": (self.intermediate, self.hidden),
            "up_proj": (self.intermediate, self.hidden),
            "down_proj": (self.hidden, self.intermediate),
        }[linear]

    def module(self, layer: int, linear: str) -> str:
        """Hugging Face's name of a linear layer."""
        block = "self_attn" if linear in LINEARS[:4] else "mlp"
        return f"model.layers.{layer}.{block}.{linear}"

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of every linear layer, by Hugging Face's name."""
        return {
            self.module(layer, linear): self.shape(linear)
            for layer in range(self.layers)
            for linear in LINEARS
        }

    def vector_sizes(self) -> dict[str, int]:
        """Lengths of all norms and biases, by the tensor's name."""
        sizes = {FINAL_NORM: self.hidden}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            sizes[f"{prefix}.input_layernorm.weight"] = self.hidden
            sizes[f"{prefix}.post_attention_layernorm.weight"] = self.hidden
            if self.head_norms:
                sizes[f"{prefix}.self_attn.q_norm.weight"] = self.head_dim
                sizes[f"{prefix}.self_attn.k_norm.weight"] = self.head_dim
            for linear in self.biases:
                sizes[f"{self.module(layer, linear)}.bias"] = self.shape(linear)[0]
        return sizes

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors that a checkpoint of this model holds."""
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab, self.hidden)}
        shapes |= {} if self.tied else {HEAD: (self.vocab, self.hidden)}
        shapes |= {f"{name}.weight": shape for name, shape in self.linear_shapes().items()}
        return shapes | {name: (size,) for name, size in self.vector_sizes().items()}


def read_decoder_config(directory: Path) -> DecoderConfig:
    """Read the `config.json` of a model or engine directory.

    Raises:
        EngineDirectoryError: it is missing or malformed; or see `decoder_config`.
    """
    with as_engine_directory_error(directory):
        return decoder_config(read_json(directory / CONFIG_FILE, ModelDirectoryError))


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Interpret a `config.json`.

    Raises:
        EngineDirectoryError: the architecture is unknown, or a field is malformed or asks for what
            no engine does; the message names the field.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _DEFAULTS:
        raise EngineDirectoryError(
            f"model_type {kind!r} is not supported (supported: {', '.join(MODEL_TYPES)})"
        )
    _refuse_unknown_variants(config)
    heads, hidden = _count(config, "num_attention_heads"), _count(config, "hidden_size")
    kv_heads = _count(config, "num_key_value_heads", heads)
    head_dim = _head_dim(config, hidden, heads)
    layers = _count(config, "num_hidden_layers", most=_MOST_LAYERS)
    context = _count(config, "max_position_embeddings")
    if heads % kv_heads:
        raise EngineDirectoryError(
            f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    return DecoderConfig(
        model_type=kind,
        hidden=hidden,
        intermediate=_count(config, "intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=_count(config, "vocab_size"),
        eps=_epsilon(config),
        context=context,
        windows=_windows(config, layers, context),
        head_norms=kind == "qwen3",
        biases=_biases(config),
        tied=_flag(config, "tie_word_embeddings"),
        rope=read_rope(config, head_dim, context),
    )


def _refuse_unknown_variants(config: Mapping[str, Any]) -> None:
    act = config.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise EngineDirectoryError(f"hidden_act {act!r} is not supported, only silu")
    if config.get("is_causal", True) is not True:
        raise EngineDirectoryError("is_causal false is not supported: attention looks back only")
    if config.get("per_layer_config"):
        raise EngineDirectoryError("per_layer_config is not supported: all layers are alike")


def _head_dim(config: Mapping[str, Any], hidden: int, heads: int) -> int:
    if config["model_type"] == "llama" and config.get("head_dim") is None and hidden % heads:
        raise EngineDirectoryError(
            f"hidden_size {hidden} is no multiple of num_attention_heads {heads},"
            " and config.json names no head_dim"
        )
    head_dim = _count(config, "head_dim", hidden // heads)
    if head_dim % 2:
        raise EngineDirectoryError(f"head_dim {head_dim} is odd; rotary embeddings need pairs")
    return head_dim


def _biases(config: Mapping[str, Any]) -> tuple[str, ...]:
    kind = config["model_type"]
    if kind == "qwen2":
        return LINEARS[:3]
    attention = kind in ("llama", "qwen3") and _flag(config, "attention_bias")
    mlp = kind == "llama" and _flag(config, "mlp_bias")
    return (LINEARS[:4] if attention else ()) + (LINEARS[4:] if mlp else ())


def _windows(config: Mapping[str, Any], layers: int, context: int) -> tuple[int, ...]:
    """Llama has no windows, Mistral one for all layers, Qwen one for those that it names."""
    kind = config["model_type"]
    switched_off = kind.startswith("qwen") and not _flag(config, "use_sliding_window")
    window = None if kind == "llama" or switched_off else _field(config, "sliding_window")
    types = _layer_types(config, layers, windowed=window is not None)
    if window is None:
        if "sliding_attention" in types:
            raise EngineDirectoryError(
                "layer_types names sliding_attention, but sliding_window is null or"
                " use_sliding_window is off"
            )
        return (0,) * layers
    width = _count(config, "sliding_window", most=1 << 62)
    # A window as wide as the context never hides anything.
    shown = width if width < context else 0
    return tuple(shown if name == "sliding_attention" else 0 for name in types)


def _layer_types(config: Mapping[str, Any], layers: int, *, windowed: bool) -> list[str]:
    kind = config["model_type"]
    if kind in ("llama", "mistral"):  # which do not look at the field
        return ["sliding_attention" if windowed else "full_attention"] * layers
    types = config.get("layer_types")
    if types is None:
        first = _count(config, "max_window_layers", least=0, most=1 << 62) if windowed else layers
        full = min(first, layers)
        return ["full_attention"] * full + ["sliding_attention"] * (layers - full)
    if not isinstance(types, list) or len(types) != layers:
        raise EngineDirectoryError(
            f"layer_types is no list of names for num_hidden_layers {layers}"
        )
    for name in types:
        if name not in ("full_attention", "sliding_attention"):
            raise EngineDirectoryError(
                f"layer_types {name!r} is not supported, only full_attention and sliding_attention"
            )
    return types


def _field(config: Mapping[str, Any], name: str) -> Any:
    """A field, or the architecture's default where it is absent; null stays None."""
    return config.get(name, _DEFAULTS[config["model_type"]].get(name))


def _count(
    config: Mapping[str, Any],
    name: str,
    if_null: int | None = None,
    *,
    least: int = 1,
    most: int = _MOST,
) -> int:
    value = _field(config, name)
    value = if_null if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise EngineDirectoryError(
            f"config.json: {name} is {value!r}, expected a number from {least} to {most}"
        )
    return value


def _flag(config: Mapping[str, Any], name: str) -> bool:
    value = config.get(name)
    value = False if value is None else value
    if not isinstance(value, bool):
        raise EngineDirectoryError(f"config.json: {name} is {value!r}, expected true or false")
    return value


def _epsilon(config: Mapping[str, Any]) -> float:
    value = _field(config, "rms_norm_eps")
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise EngineDirectoryError(
            f"config.json: rms_norm_eps is {value!r}, expected a number from 0 to 1"
        )
    return float(value)
