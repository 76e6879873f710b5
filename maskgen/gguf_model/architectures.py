"""How the architectures of GGUF files differ from Llama's, as model directories.

After llama.cpp's `convert_hf_to_gguf.py`, which wrote the files, and `src/llama-model.cpp` for what
no file says because llama.cpp knows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_NORMS_AROUND = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_NORMS_AFTER = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_ATTENTION = {f"attn_{one}": f"self_attn.{one}_proj" for one in "qkv"}
_OUTPUT = {"attn_output": "self_attn.o_proj"}
_MLP = {f"ffn_{one}": f"mlp.{one}_proj" for one in ("gate", "up", "down")}
_LINEARS = _ATTENTION | _OUTPUT | _MLP
_FUSED_MLP = {"ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"}

_QKV, _ALL_ATTENTION = tuple(_ATTENTION), (*_ATTENTION, "attn_output")


@dataclass(frozen=True)
class GgufArchitecture:
    """What files of one `general.architecture` become.

    Attributes:
        model_type: of config.json.
        class_name: transformers' name of the model.
        norms: the file's name of a layer's norm -> the directory's.
        linears: the same of linear layers.
        norm_biases: norms have biases.
        biases: flag of config.json -> linear layers that have biases where it is set, which the
            first layer shows; "": always.
        paired: rows of q and k lie pair by pair, where the directory has halves of a head.
        gain_offset: is in the file's gains and not in the directory's.
        epsilon: the key of the norms' epsilon.
        fields: further key -> field of config.json.
        fixed: fields that no key says.
        full_every: every so many layers one has no attention window; 0: layers are not told apart.
        partial: the rope turns a part of a head.
        scaled_rope: kinds of rope scaling that mean the same in both.
    """

    model_type: str
    class_name: str
    norms: Mapping[str, str] = field(default_factory=lambda: _NORMS)
    linears: Mapping[str, str] = field(default_factory=lambda: _LINEARS)
    norm_biases: bool = False
    biases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    paired: bool = False
    gain_offset: float = 0.0
    epsilon: str = "attention.layer_norm_rms_epsilon"
    fields: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    full_every: int = 0
    partial: bool = False
    scaled_rope: tuple[str, ...] = ("linear", "yarn")


_WINDOW = {"attention.sliding_window": "sliding_window"}
_LLAMA_BIASES = {"attention_bias": _ALL_ATTENTION, "mlp_bias": tuple(_MLP)}

ARCHITECTURES: Mapping[str, GgufArchitecture] = {
    "llama": GgufArchitecture("llama", "LlamaForCausalLM", biases=_LLAMA_BIASES, paired=True),
    "qwen2": GgufArchitecture("qwen2", "Qwen2ForCausalLM", biases={"": _QKV}),
    "qwen3": GgufArchitecture(
        "qwen3",
        "Qwen3ForCausalLM",
        norms=_NORMS | _HEAD_NORMS,
        biases={"attention_bias": _ALL_ATTENTION},
    ),
    "gemma": GgufArchitecture(
        "gemma",
        "GemmaForCausalLM",
        gain_offset=1.0,
        fixed={"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"},
    ),
    "gemma2": GgufArchitecture(
        "gemma2",
        "Gemma2ForCausalLM",
        norms=_NORMS_AROUND,
        gain_offset=1.0,
        fields=_WINDOW
        | {
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        fixed={"hidden_activation": "gelu_pytorch_tanh"},
        full_every=2,
    ),
    "gemma3": GgufArchitecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        norms=_NORMS_AROUND | _HEAD_NORMS,
        gain_offset=1.0,
        fields=_WINDOW
        | {
            "final_logit_softcapping": "final_logit_softcapping",
            "rope.freq_base_swa": "rope_local_base_freq",
        },
        fixed={"hidden_activation": "gelu_pytorch_tanh", "rope_local_base_freq": 10000.0},
        full_every=6,
        scaled_rope=("linear",),
    ),
    "smollm3": GgufArchitecture(
        "smollm3",
        "SmolLM3ForCausalLM",
        biases=_LLAMA_BIASES,
        paired=True,
        fixed={"no_rope_layer_interval": 4},
    ),
    "granite": GgufArchitecture(
        "granite",
        "GraniteForCausalLM",
        biases=_LLAMA_BIASES,
        paired=True,
        fields={
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
    ),
    "olmo2": GgufArchitecture(
        "olmo2", "Olmo2ForCausalLM", norms=_NORMS_AFTER | _HEAD_NORMS, scaled_rope=()
    ),
    "command-r": GgufArchitecture(
        "cohere",
        "CohereForCausalLM",
        norms={"attn_norm": "input_layernorm"},
        epsilon="attention.layer_norm_epsilon",
        fields={"logit_scale": "logit_scale"},
        scaled_rope=(),
    ),
    "cohere2": GgufArchitecture(
        "cohere2",
        "Cohere2ForCausalLM",
        norms={"attn_norm": "input_layernorm"},
        epsilon="attention.layer_norm_epsilon",
        fields=_WINDOW | {"logit_scale": "logit_scale"},
        full_every=4,
        scaled_rope=(),
    ),
    "stablelm": GgufArchitecture(
        "stablelm",
        "StableLmForCausalLM",
        norm_biases=True,
        biases={"use_qkv_bias": _QKV},
        epsilon="attention.layer_norm_epsilon",
        fields={"use_parallel_residual": "use_parallel_residual"},
        partial=True,
        scaled_rope=(),
    ),
    "phi3": GgufArchitecture(
        "phi3",
        "Phi3ForCausalLM",
        linears={"attn_qkv": "self_attn.qkv_proj"} | _OUTPUT | _FUSED_MLP,
        fields=_WINDOW,
        partial=True,
        scaled_rope=("longrope",),
    ),
    "glm4": GgufArchitecture(
        "glm4",
        "Glm4ForCausalLM",
        norms={
            "attn_norm": "input_layernorm",
            "post_attention_norm": "post_self_attn_layernorm",
            "ffn_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
        },
        linears=_ATTENTION | _OUTPUT | _FUSED_MLP,
        biases={"attention_bias": _QKV},
        partial=True,
        scaled_rope=(),
    ),
}
"""What is understood, by `general.architecture`."""
