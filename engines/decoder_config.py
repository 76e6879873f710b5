"""Which decoders the CPU engine runs, read from a Hugging Face `config.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.errors import EngineDirectoryError

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a decoder layer, in the order of the native decoder."""

_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and variants of a Llama-family decoder.

    Attributes:
        windows: per layer, how many positions attention sees (0: all).
        head_norms: whether queries and keys are RMS-normalised per head (Qwen3).
        biases: linear layers that have a bias, of those in `LINEARS`.
        tied: the output head is the embedding.
        inverse_frequency: (head_dim / 2,) float32 rotary frequencies, scaling applied.
        rope_factor: what the rotary embedding's cosines and sines are multiplied with (YaRN).
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
    inverse_frequency: npt.NDArray[np.float32]
    rope_factor: float

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


def read_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Interpret a `config.json`.

    Raises:
        EngineDirectoryError: a field is missing, or the CPU engine does not implement what it asks
            for; the message names the field.
    """
    kind = config.get("model_type")
    if kind not in _MODEL_TYPES:
        raise EngineDirectoryError(
            f"model_type {kind!r} is not supported by the cpu engine"
            f" (supported: {', '.join(_MODEL_TYPES)})"
        )
    act = config.get("hidden_act", "silu")
    if act not in ("silu", "swish"):
        raise EngineDirectoryError(f"hidden_act {act!r} is not supported, only silu")
    hidden, heads = _count(config, "hidden_size"), _count(config, "num_attention_heads")
    kv_heads = _count(config, "num_key_value_heads", heads)
    head_dim = _count(config, "head_dim", hidden // heads)
    layers = _count(config, "num_hidden_layers")
    context = _count(config, "max_position_embeddings")
    if heads % kv_heads:
        raise EngineDirectoryError(f"{heads} attention heads are no multiple of {kv_heads}")
    if head_dim % 2:
        raise EngineDirectoryError(f"head_dim {head_dim} is odd")
    frequency, factor = _rope(config, head_dim)
    return DecoderConfig(
        model_type=kind,
        hidden=hidden,
        intermediate=_count(config, "intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=_count(config, "vocab_size"),
        eps=float(config.get("rms_norm_eps", 1e-6)),
        context=context,
        windows=_windows(config, layers, context),
        head_norms=kind == "qwen3",
        biases=_biases(config, kind),
        tied=bool(config.get("tie_word_embeddings", False)),
        inverse_frequency=frequency,
        rope_factor=factor,
    )


def _biases(config: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    if kind == "qwen2":
        return LINEARS[:3]
    attention = LINEARS[:4] if config.get("attention_bias") else ()
    return attention + (LINEARS[4:] if config.get("mlp_bias") else ())


def _windows(config: Mapping[str, Any], layers: int, context: int) -> tuple[int, ...]:
    window = config.get("sliding_window")
    if window is None or config.get("use_sliding_window", True) is False:
        return (0,) * layers
    types = config.get("layer_types") or ["sliding_attention"] * layers
    if len(types) != layers:
        raise EngineDirectoryError(f"layer_types lists {len(types)} layers of {layers}")
    known = {"sliding_attention": int(window), "full_attention": 0}
    if unknown := set(types) - set(known):
        raise EngineDirectoryError(f"layer_types {sorted(unknown)} are not supported")
    # A window as wide as the context never hides anything.
    return tuple(known[t] if known[t] < context else 0 for t in types)


def _rope(config: Mapping[str, Any], head_dim: int) -> tuple[npt.NDArray[np.float32], float]:
    """Rotary frequencies as transformers' `modeling_rope_utils` computes them, in float32."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise EngineDirectoryError(f"partial_rotary_factor {partial} is not supported, only 1")
    exponents = np.arange(0, head_dim, 2, dtype=np.int64).astype(np.float32) / np.float32(head_dim)
    inverse = (1.0 / np.power(np.float32(theta), exponents)).astype(np.float32)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return inverse, 1.0
    if kind == "linear":
        return (inverse / np.float32(rope["factor"])).astype(np.float32), 1.0
    if kind == "llama3":
        return _llama3(inverse, rope), 1.0
    if kind == "yarn":
        return _yarn(inverse, rope, head_dim, theta)
    raise EngineDirectoryError(
        f"rope_type {kind!r} is not supported (supported: default, linear, llama3, yarn)"
    )


def _llama3(inverse: npt.NDArray[np.float32], rope: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    factor = float(rope["factor"])
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    old = float(rope["original_max_position_embeddings"])
    wavelength = 2 * math.pi / inverse
    smooth = (old / wavelength - low) / (high - low)
    blended = (1 - smooth) * inverse / factor + smooth * inverse
    scaled = np.where(wavelength > old / low, inverse / factor, inverse)
    middle = (wavelength >= old / high) & (wavelength <= old / low)
    return np.where(middle, blended, scaled).astype(np.float32)


def _yarn(
    inverse: npt.NDArray[np.float32], rope: Mapping[str, Any], head_dim: int, theta: float
) -> tuple[npt.NDArray[np.float32], float]:
    factor = float(rope["factor"])
    old = float(rope["original_max_position_embeddings"])
    if "mscale" in rope or "mscale_all_dim" in rope:
        raise EngineDirectoryError("mscale of a yarn rope is not supported")
    attention = rope.get("attention_factor")
    scale = 0.1 * math.log(factor) + 1.0 if attention is None else float(attention)

    def dimension(rotations: float) -> float:
        return head_dim * math.log(old / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension(float(rope.get("beta_fast") or 32))
    high = dimension(float(rope.get("beta_slow") or 1))
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = np.clip(
        (np.arange(head_dim // 2, dtype=np.float32) - low) / max(high - low, 0.001), 0, 1
    )
    keep = 1 - ramp
    return (inverse / factor * (1 - keep) + inverse * keep).astype(np.float32), scale


def _count(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise EngineDirectoryError(f"config.json: {name} is {value!r}, expected a positive number")
    return value
