"""What a Hugging Face `config.json` says about a decoder, for every engine.

A field means what transformers 5 makes of it, in the notation of version 4 or 5; a field that is
absent has the architecture's own default (`configuration_llama.py` and its like). What an engine
cannot run, it refuses by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.directory.config_fields import read_count, read_field, read_flag, read_number
from engines.directory.families import (
    ACTIVATIONS,
    FAMILIES,
    LINEARS,
    MIXTURES,
    ROUTER,
    Family,
)
from engines.directory.layer_types import layer_types, rope_of_layer, windows
from engines.directory.mixture import Mixture, read_mixture
from engines.directory.rope import Rope, read_rope, rope_fields
from engines.errors import EngineDirectoryError, as_engine_directory_error
from maskgen.format.json_file import read_json
from maskgen.format.mask import Mask
from maskgen.format.model_directory import CONFIG_FILE, ModelDirectoryError
from maskgen.format.placements import Codes
from maskgen.format.weight_files import EMBEDDING, HEAD

FINAL_NORM = "model.norm"
MODEL_TYPES = tuple(FAMILIES)
"""The `model_type`s that are understood."""

OTHER_MIXTURE = "a mixture of experts of a kind that is not run"
"""Why the families in `MIXTURES` are refused."""

_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class Scales:
    """Factors of a family's own; 1 where it has none, and 0 for a cap that is not there.

    Attributes:
        attention: of scores, before the softmax.
        embedding: of rows of the embedding.
        residual: of what a block adds to the residual stream.
        logit: of logits.
        attention_cap, logit_cap: c of c tanh(x / c).
    """

    attention: float
    embedding: float = 1.0
    residual: float = 1.0
    logit: float = 1.0
    attention_cap: float = 0.0
    logit_cap: float = 0.0


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and variants of a decoder.

    Attributes:
        model_type: one of `MODEL_TYPES`.
        context: most positions of a sequence; with longrope those that its short factors are for.
        windows: per layer, how many positions attention sees (0: all).
        biases: linear layers that have a bias, of those in `LINEARS`.
        tied: the output head is the embedding.
        ropes: rotary position embeddings.
        rope_of_layer: per layer, which of `ropes` it has (-1: none).
        gate: a, b of the activation x sigmoid(a x + b x^3).
        scales: factors of the family's own.
        mixture: its mixtures of experts; None where every layer has one MLP.
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
    biases: tuple[str, ...]
    tied: bool
    ropes: tuple[Rope, ...]
    rope_of_layer: tuple[int, ...]
    gate: tuple[float, float]
    scales: Scales
    mixture: Mixture | None

    @property
    def family(self) -> Family:
        """The family."""
        return FAMILIES[self.model_type]

    @property
    def rope(self) -> Rope:
        """The rope of layers that see all, which most families have in every layer."""
        return self.ropes[0]

    def linears(self, layer: int) -> tuple[str, ...]:
        """The linear layers of a decoder layer, in the order of the native decoder.

        `LINEARS`, or with experts `experts.0.gate_proj` and its like in place of the last three.
        """
        if self.mixture is None or not self.mixture.layers[layer]:
            return LINEARS
        return (*LINEARS[:4], *self.mixture.linears)

    def shape(self, linear: str) -> tuple[int, int]:
        """(outputs, inputs) of one of `linears`."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        expert, _, role = linear.rpartition(".")
        inner = self.mixture.intermediate if expert and self.mixture else self.intermediate
        return {
            "q_proj": (q, self.hidden),
            "k_proj": (kv, self.hidden),
            "v_proj": (kv, self.hidden),
            "o_proj": (self.hidden, q),
            "gate_proj": (inner, self.hidden),
            "up_proj": (inner, self.hidden),
            "down_proj": (self.hidden, inner),
        }[role]

    def module(self, layer: int, linear: str) -> str:
        """Hugging Face's name of a linear layer, or of one that a fused matrix is a part of."""
        if self.mixture is not None and linear.startswith("experts."):
            return f"model.layers.{layer}.{self.mixture.module(linear)}"
        attention = (*LINEARS[:4], "qkv_proj")
        block = "self_attn" if linear in attention else "mlp"
        return f"model.layers.{layer}.{block}.{linear}"

    def part_shapes(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of every linear layer; a fused matrix is the layers that it holds."""
        return {
            self.module(layer, linear): self.shape(linear)
            for layer in range(self.layers)
            for linear in self.linears(layer)
        }

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of every matrix of the decoder layers, by the checkpoint's name."""
        shapes: dict[str, tuple[int, int]] = {}
        for layer in range(self.layers):
            for linear in self.linears(layer):
                name, rows = self.place(layer, linear)
                shapes[name] = (rows.stop, self.shape(linear)[1])
        return shapes

    def place(self, layer: int, linear: str) -> tuple[str, slice]:
        """The matrix of the checkpoint that holds a linear layer, and which of its rows."""
        for fused, parts in self.family.fused.items():
            if linear in parts:
                before = parts[: parts.index(linear)]
                first = sum(self.shape(part)[0] for part in before)
                return self.module(layer, fused), slice(first, first + self.shape(linear)[0])
        return self.module(layer, linear), slice(0, self.shape(linear)[0])

    def codes_of_parts(self, mask: Mask) -> dict[str, Codes]:
        """Codes by linear layer; those of a fused matrix are cut into the layers that it holds."""
        places = {
            self.module(layer, linear): self.place(layer, linear)
            for layer in range(self.layers)
            for linear in self.linears(layer)
        }
        fused = {name for name, _ in places.values()}
        codes = {name: codes for name, codes in mask.codes.items() if name not in fused}
        return codes | {
            part: mask.codes[name][rows]
            for part, (name, rows) in places.items()
            if name in mask.codes
        }

    def vector_sizes(self) -> dict[str, int]:
        """Lengths of all norms and biases, by the tensor's name."""
        family = self.family
        wide = family.head_norms == "wide"
        parts = ("weight", "bias") if family.norm_biases else ("weight",)
        sizes = {f"{FINAL_NORM}.{part}": self.hidden for part in parts}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            for name in sorted(set(family.norms.values())):
                sizes |= {f"{prefix}.{name}.{part}": self.hidden for part in parts}
            if family.head_norms != "no":
                q, k = (self.shape(linear)[0] if wide else self.head_dim for linear in LINEARS[:2])
                sizes[f"{prefix}.self_attn.q_norm.weight"] = q
                sizes[f"{prefix}.self_attn.k_norm.weight"] = k
            for linear in self.biases:
                sizes[f"{self.module(layer, linear)}.bias"] = self.shape(linear)[0]
        return sizes

    def router_shapes(self) -> dict[str, tuple[int, int]]:
        """(experts, hidden) of every mixture's router, by the tensor's name."""
        mixture = self.mixture
        if mixture is None:
            return {}
        return {
            f"{self.router(layer)}.weight": (mixture.experts, self.hidden)
            for layer in range(self.layers)
            if mixture.layers[layer]
        }

    def router(self, layer: int) -> str:
        """Name of a mixture's router."""
        assert self.mixture is not None
        return f"model.layers.{layer}.{self.mixture.names.block}.{ROUTER}"

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors that a checkpoint of this model holds."""
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocab, self.hidden)}
        shapes |= {} if self.tied else {HEAD: (self.vocab, self.hidden)}
        shapes |= {f"{name}.weight": shape for name, shape in self.linear_shapes().items()}
        shapes |= self.router_shapes()
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
    if not isinstance(kind, str) or kind not in FAMILIES:
        mixture = isinstance(kind, str) and kind in MIXTURES
        raise EngineDirectoryError(
            f"model_type {kind!r} is not supported{f': {OTHER_MIXTURE}' if mixture else ''}"
            f" (supported: {', '.join(MODEL_TYPES)})"
        )
    family = FAMILIES[kind]
    _refuse_unknown_variants(config, family)
    heads, hidden = read_count(config, "num_attention_heads"), read_count(config, "hidden_size")
    kv_heads = read_count(config, "num_key_value_heads", heads)
    head_dim = _head_dim(config, family, hidden, heads)
    layers = read_count(config, "num_hidden_layers", most=_MOST_LAYERS)
    ropes = _ropes(config, family, head_dim, read_count(config, "max_position_embeddings"))
    context = min(rope.reach for rope in ropes)
    if heads % kv_heads:
        raise EngineDirectoryError(
            f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    types = layer_types(config, family, layers)
    return DecoderConfig(
        model_type=kind,
        hidden=hidden,
        intermediate=read_count(config, "intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=read_count(config, "vocab_size"),
        eps=_epsilon(config, family),
        context=context,
        windows=windows(config, types, context),
        biases=_biases(config, family),
        tied=read_flag(config, "tie_word_embeddings"),
        ropes=ropes,
        rope_of_layer=rope_of_layer(config, family, types),
        gate=_gate(config, family),
        scales=_scales(config, hidden, head_dim),
        mixture=read_mixture(config, family, layers),
    )


def _refuse_unknown_variants(config: Mapping[str, Any], family: Family) -> None:
    if config.get("is_causal", True) is not True:
        raise EngineDirectoryError("is_causal false is not supported: attention looks back only")
    if config.get("per_layer_config"):
        raise EngineDirectoryError("per_layer_config is not supported: all layers are alike")
    for name, only in family.refused.items():
        if config.get(name) not in (None, only):
            raise EngineDirectoryError(
                f"{name} {config[name]!r} is not supported for {config['model_type']}, only {only}"
            )


def _head_dim(config: Mapping[str, Any], family: Family, hidden: int, heads: int) -> int:
    given = config.get("head_dim")
    # Gemma 2 and 3 refuse such sizes even though they never divide.
    strict = config["model_type"].startswith("gemma") and config["model_type"] != "gemma"
    divides = given is None and read_field(config, "head_dim") is None
    if hidden % heads and (strict or (divides and config["model_type"] in ("llama", "stablelm"))):
        raise EngineDirectoryError(
            f"hidden_size {hidden} is no multiple of num_attention_heads {heads},"
            " and config.json names no head_dim"
        )
    if not family.any_head_dim and given not in (None, hidden // heads):
        raise EngineDirectoryError(
            f"head_dim {given!r} is not what {config['model_type']} uses: hidden_size {hidden} over"
            f" num_attention_heads {heads}"
        )
    head_dim = read_count(config, "head_dim", hidden // heads)
    if head_dim % 2:
        raise EngineDirectoryError(f"head_dim {head_dim} is odd; rotary embeddings need pairs")
    return head_dim


def _gate(config: Mapping[str, Any], family: Family) -> tuple[float, float]:
    name = read_field(config, family.activation)
    if not isinstance(name, str) or family.renamed.get(name, name) not in ACTIVATIONS:
        raise EngineDirectoryError(
            f"{family.activation} {name!r} is not supported, only {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[family.renamed.get(name, name)]


def _biases(config: Mapping[str, Any], family: Family) -> tuple[str, ...]:
    return tuple(
        linear
        for flag, linears in family.biases.items()
        if flag == "" or read_flag(config, flag)
        for linear in linears
    )


def _scales(config: Mapping[str, Any], hidden: int, head_dim: int) -> Scales:
    kind = config["model_type"]
    if kind == "granite":
        return Scales(
            attention=read_number(config, "attention_multiplier"),
            embedding=read_number(config, "embedding_multiplier"),
            residual=read_number(config, "residual_multiplier"),
            logit=1.0 / read_number(config, "logits_scaling"),
        )
    if kind in ("cohere", "cohere2"):
        return Scales(attention=_inverse_root(head_dim), logit=read_number(config, "logit_scale"))
    if not kind.startswith("gemma"):
        return Scales(attention=_inverse_root(head_dim))
    over = read_count(config, "query_pre_attn_scalar", head_dim) if kind != "gemma" else head_dim
    return Scales(
        attention=_inverse_root(over),
        embedding=hidden**0.5,  # transformers rounds it to the model's type, llama.cpp does not
        attention_cap=read_number(config, "attn_logit_softcapping", if_null=0.0),
        logit_cap=read_number(config, "final_logit_softcapping", if_null=0.0),
    )


def _inverse_root(number: int) -> float:
    return float(np.float32(1) / np.sqrt(np.float32(number)))  # in float32, as engines compute


def _ropes(
    config: Mapping[str, Any], family: Family, head_dim: int, context: int
) -> tuple[Rope, ...]:
    theta = read_number(config, "rope_theta")
    if family.ropes == "one":
        share = read_field(config, "partial_rotary_factor") if family.partial else None
        rope = read_rope(
            config,
            head_dim,
            context,
            theta=theta,
            share=share,
            renamed=family.rope_renamed,
            pretrained=family.defaults.get("original_max_position_embeddings"),
        )
        if family.rope_types and rope.kind not in family.rope_types:
            raise EngineDirectoryError(
                f"rope_type {rope.kind!r} is not supported for {config['model_type']}, only"
                f" {', '.join(family.rope_types)}"
            )
        return (rope,)
    local = family.defaults["rope_theta"]
    if family.local_theta is not None:
        local = read_number(config, family.local_theta)
    seeing_all = rope_fields(config, "full_attention", theta)
    windowed = rope_fields(config, "sliding_attention", local)
    return (read_rope(seeing_all, head_dim, context), read_rope(windowed, head_dim, context))


def _epsilon(config: Mapping[str, Any], family: Family) -> float:
    value = read_field(config, family.epsilon)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise EngineDirectoryError(
            f"config.json: {family.epsilon} is {value!r}, expected a number from 0 to 1"
        )
    return float(value)
