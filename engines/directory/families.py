"""Where decoder families differ: which norm and rope stands where, which biases, which scales.

One entry per `model_type`, after `configuration_*.py` and `modeling_*.py` of transformers 5. All
else is what Llama does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from maskgen.format.experts import EXPERTS, ExpertNames

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a decoder layer without experts, in the order of the native decoder."""
_QKV, _ATTENTION, _MLP = LINEARS[:3], LINEARS[:4], LINEARS[4:]

ROUTER = "gate"
"""What the files of all families that are run call a mixture's router."""

NormRole = Literal["attention_input", "attention_output", "mlp_input", "mlp_output"]
"""What a norm is applied to: what a block reads, or what it adds to the residual stream."""

Norms = Mapping[NormRole, str]

_BEFORE: Norms = {"attention_input": "input_layernorm", "mlp_input": "post_attention_layernorm"}
_AFTER: Norms = {
    "attention_output": "post_attention_layernorm",
    "mlp_output": "post_feedforward_layernorm",
}
_AROUND: Norms = {
    "attention_input": "input_layernorm",
    "attention_output": "post_attention_layernorm",
    "mlp_input": "pre_feedforward_layernorm",
    "mlp_output": "post_feedforward_layernorm",
}
_GLM: Norms = {
    "attention_input": "input_layernorm",
    "attention_output": "post_self_attn_layernorm",
    "mlp_input": "post_attention_layernorm",
    "mlp_output": "post_mlp_layernorm",
}
_SHARED: Norms = {"attention_input": "input_layernorm", "mlp_input": "input_layernorm"}

_GELU = (1.5957691216057308, 0.07135481282652125)
"""2 sqrt(2 / pi), and 0.044715 times that: Hendrycks and Gimpel, arXiv 1606.08415, section 2."""
ACTIVATIONS: Mapping[str, tuple[float, float]] = {
    "silu": (1.0, 0.0),
    "swish": (1.0, 0.0),
    "gelu_pytorch_tanh": _GELU,
    "gelu_new": _GELU,
}
"""Name -> a, b of the gate x sigmoid(a x + b x^3)."""


@dataclass(frozen=True)
class Mixing:
    """Where config.json says what a family's mixtures of experts are.

    Attributes:
        names: of the matrices in the checkpoint.
        counts: fields of the number of experts, of which one is there; the last has a default.
        width: field of an expert's intermediate size.
        normalised: flag that the weights of a token's experts add up to 1; "": they always do.
        some_layers: `mlp_only_layers` and `decoder_sparse_step` say which layers have experts.
    """

    names: ExpertNames
    counts: tuple[str, ...]
    width: str
    normalised: str
    some_layers: bool = False


@dataclass(frozen=True)
class Family:
    """A family of decoders.

    Attributes:
        models: what people call its models.
        defaults: fields of config.json -> their values where they are absent; None: as many
            key-value heads as heads, a head_dim of hidden_size over the latter.
        norms: role -> the norm's name in a layer; a role that is absent has none.
        layer_norm: norms subtract the mean, too.
        norm_biases: norms have biases.
        gain_offset: is added to stored gains.
        head_norms: queries and keys are RMS-normalised: no, per `head`, or over all heads (`wide`).
        parallel: attention and MLP read the same residual stream.
        biases: flag of config.json -> linear layers that have a bias where it is set; "": always.
        windows: which layers have attention windows: `none`, `all`, all if `use_sliding_window` is
            set (`flagged`), those that `layer_types` names if it is (`switched`), or those that it
            names (`typed`).
        full_every: where `layer_types` is absent, every so many `typed` layers one sees all.
        ropes: `one`, or `typed`: one for layers with a window and one for the others.
        turned: the layers that have a rope: `all`, those in `no_rope_layers` (`listed`), or those
            with a window (`windowed`).
        local_theta: field of the theta of typed layers with a window; None: the default's alone,
            which is what transformers 5 makes of OLMo 3's `rope_theta`.
        partial: `partial_rotary_factor` counts.
        interleaved: rotary pairs are neighbours, not half a head apart.
        rope_renamed: `rope_type` -> the one that is run under this name.
        rope_types: the only ones that are run; empty: all that engines know.
        any_head_dim: `head_dim` counts.
        fused: name of a matrix in the checkpoint -> the linear layers whose rows it holds, in
            order. Masks and values name the matrix; the native decoder has the layers.
        activation: field of the activation.
        renamed: activation -> the one that is really run under this name.
        refused: field -> the only value that is run; null counts as that.
        mixing: its mixtures of experts; None where a layer has one MLP.
    """

    models: str
    defaults: Mapping[str, Any]
    norms: Norms = field(default_factory=lambda: _BEFORE)
    layer_norm: bool = False
    norm_biases: bool = False
    gain_offset: float = 0.0
    head_norms: Literal["no", "head", "wide"] = "no"
    parallel: bool = False
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    windows: Literal["none", "all", "flagged", "switched", "typed"] = "none"
    full_every: int = 1
    ropes: Literal["one", "typed"] = "one"
    turned: Literal["all", "listed", "windowed"] = "all"
    local_theta: str | None = None
    partial: bool = False
    interleaved: bool = False
    rope_renamed: Mapping[str, str] = field(default_factory=dict)
    rope_types: tuple[str, ...] = ()
    any_head_dim: bool = True
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    activation: str = "hidden_act"
    renamed: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, Any] = field(default_factory=dict)
    mixing: Mixing | None = None

    @property
    def epsilon(self) -> str:
        """Field of the epsilon of norms."""
        return "layer_norm_eps" if self.layer_norm else "rms_norm_eps"


def _defaults(
    vocab: int, intermediate: int, kv_heads: int | None, context: int, **others: Any
) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": 4096,
        "intermediate_size": intermediate,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": kv_heads,
        "head_dim": None,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-6,
        "layer_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "rope_theta": 10000.0,
    } | others


def _gemma(**others: Any) -> dict[str, Any]:
    return (
        _defaults(256000, 9216, 4, 8192)
        | {"hidden_size": 2304, "num_hidden_layers": 26, "num_attention_heads": 8, "head_dim": 256}
        | {"tie_word_embeddings": True, "query_pre_attn_scalar": 256}
        | {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
        | others
    )


_FUSED_MLP = {"gate_up_proj": ("gate_proj", "up_proj")}
_FUSED = {"qkv_proj": _QKV} | _FUSED_MLP
_LLAMA_BIASES = {"attention_bias": _ATTENTION, "mlp_bias": _MLP}
_CAUSAL = {"use_bidirectional_attention": False}
_COHERE = Family(
    "Cohere (Command R)",
    _defaults(256000, 22528, None, 8192)
    | {"hidden_size": 8192, "num_hidden_layers": 40, "num_attention_heads": 64}
    | {"tie_word_embeddings": True, "logit_scale": 0.0625, "rope_theta": 500000.0},
    norms=_SHARED,
    layer_norm=True,
    parallel=True,
    interleaved=True,
    biases={"attention_bias": _ATTENTION},
    refused={"use_qk_norm": False},
)

_GLM4 = Family(
    "GLM-4 (0414)",
    _defaults(151552, 13696, 2, 131072, head_dim=128, rms_norm_eps=1.5625e-07)
    | {"num_hidden_layers": 40, "partial_rotary_factor": 0.5, "attention_bias": True},
    norms=_GLM,
    biases={"attention_bias": _QKV},
    partial=True,
    interleaved=True,
    fused=_FUSED_MLP,
)

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        "Llama 2 and 3, SmolLM2", _defaults(32000, 11008, None, 2048), biases=_LLAMA_BIASES
    ),
    "mistral": Family("Mistral", _defaults(32000, 14336, 8, 131072), windows="all"),
    "qwen2": Family(
        "Qwen2, Qwen2.5", _defaults(151936, 22016, 32, 32768), biases={"": _QKV}, windows="switched"
    ),
    "qwen3": Family(
        "Qwen3 (dense)",
        _defaults(151936, 22016, 32, 32768, head_dim=128),
        biases={"attention_bias": _ATTENTION},
        windows="switched",
        head_norms="head",
    ),
    "gemma": Family(
        "Gemma",
        _gemma(hidden_size=3072, intermediate_size=24576, num_hidden_layers=28)
        | {"num_attention_heads": 16, "num_key_value_heads": 16, "query_pre_attn_scalar": None},
        gain_offset=1.0,
        biases={"attention_bias": _ATTENTION},
        renamed={"gelu": "gelu_pytorch_tanh"},
        refused=_CAUSAL,
    ),
    "gemma2": Family(
        "Gemma 2",
        _gemma(attn_logit_softcapping=50.0, final_logit_softcapping=30.0),
        norms=_AROUND,
        gain_offset=1.0,
        biases={"attention_bias": _ATTENTION},
        windows="typed",
        full_every=2,
        activation="hidden_activation",
        refused=_CAUSAL,
    ),
    "gemma3_text": Family(
        "Gemma 3 (text)",
        _gemma(vocab_size=262208, max_position_embeddings=131072)
        | {"rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0},
        norms=_AROUND,
        gain_offset=1.0,
        head_norms="head",
        biases={"attention_bias": _ATTENTION},
        windows="typed",
        full_every=6,
        ropes="typed",
        local_theta="rope_local_base_freq",
        activation="hidden_activation",
        # transformers reads the cap and does not apply it (modeling_gemma3.py).
        refused=_CAUSAL | {"attn_logit_softcapping": None},
    ),
    "smollm3": Family(
        "SmolLM3",
        _defaults(128256, 11008, 4, 32768)
        | {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16}
        | {"tie_word_embeddings": True, "rope_theta": 2_000_000.0, "sliding_window": None}
        | {"no_rope_layer_interval": 4},
        biases=_LLAMA_BIASES,
        windows="switched",
        turned="listed",
    ),
    "granite": Family(
        "Granite 3",
        _defaults(32000, 11008, None, 2048)
        | {"embedding_multiplier": 1.0, "residual_multiplier": 1.0}
        | {"attention_multiplier": 1.0, "logits_scaling": 1.0},
        biases=_LLAMA_BIASES,
    ),
    "olmo2": Family(
        "OLMo 2",
        _defaults(50304, 11008, None, 2048, rms_norm_eps=1e-5),
        norms=_AFTER,
        head_norms="wide",
        biases={"attention_bias": _ATTENTION},
    ),
    "olmo3": Family(
        "OLMo 3",
        _defaults(50304, 11008, None, 2048, rms_norm_eps=1e-5, rope_theta=500000.0),
        norms=_AFTER,
        head_norms="wide",
        biases={"attention_bias": _ATTENTION},
        windows="typed",
        full_every=4,
        ropes="typed",
    ),
    "cohere": _COHERE,
    "cohere2": replace(
        _COHERE,
        models="Cohere 2 (Command R7B)",
        defaults={**_COHERE.defaults, "rope_theta": 10000.0},
        windows="typed",
        full_every=4,
        turned="windowed",
        any_head_dim=False,
    ),
    "stablelm": Family(
        "StableLM",
        _defaults(50304, 6912, 32, 4096, hidden_size=2560, partial_rotary_factor=0.25),
        layer_norm=True,
        norm_biases=True,
        biases={"use_qkv_bias": _QKV},
        partial=True,
        any_head_dim=False,
        refused={"qk_layernorm": False, "use_parallel_residual": False},
    ),
    "phi3": Family(
        "Phi-3, Phi-3.5, Phi-4",
        _defaults(32064, 8192, None, 4096, rms_norm_eps=1e-5)
        | {"hidden_size": 3072, "partial_rotary_factor": 1.0, "sliding_window": None}
        | {"original_max_position_embeddings": 4096},
        windows="all",
        partial=True,
        rope_renamed={"su": "longrope", "yarn": "longrope"},
        rope_types=("default", "longrope"),
        fused=_FUSED,
    ),
    "glm": replace(_GLM4, models="GLM-4 (9B)", norms=_BEFORE),
    "glm4": _GLM4,
    "mixtral": Family(
        "Mixtral",
        _defaults(32000, 14336, 8, 131072, rms_norm_eps=1e-5, rope_theta=1_000_000.0)
        | {"sliding_window": None, "num_local_experts": 8, "num_experts_per_tok": 2},
        windows="all",
        mixing=Mixing(EXPERTS["mixtral"], ("num_local_experts",), "intermediate_size", ""),
    ),
    "qwen3_moe": Family(
        "Qwen3-MoE",
        _defaults(151936, 6144, 4, 32768)
        | {"hidden_size": 2048, "num_hidden_layers": 24, "moe_intermediate_size": 768}
        | {"num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1},
        biases={"attention_bias": _ATTENTION},
        windows="flagged",
        head_norms="head",
        mixing=Mixing(
            EXPERTS["qwen3_moe"],
            ("num_local_experts", "num_experts"),
            "moe_intermediate_size",
            "norm_topk_prob",
            some_layers=True,
        ),
    ),
    "olmoe": Family(
        "OLMoE",
        _defaults(50304, 2048, None, 4096, rms_norm_eps=1e-5)
        | {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16}
        | {"num_experts": 64, "num_experts_per_tok": 8},
        head_norms="wide",
        biases={"attention_bias": _ATTENTION},
        any_head_dim=False,
        refused={"clip_qkv": None},
        mixing=Mixing(EXPERTS["olmoe"], ("num_experts",), "intermediate_size", "norm_topk_prob"),
    ),
}
"""What is understood, by `model_type`."""

MIXTURES: Mapping[str, str] = {
    "qwen2_moe": "Qwen1.5-MoE, Qwen2-MoE",
    "granitemoe": "Granite 3 MoE",
    "phimoe": "Phi-3.5-MoE",
}
"""Mixtures of experts that are not."""
