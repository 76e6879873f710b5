"""A Hugging Face configuration as TensorRT-LLM's checkpoint configuration."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from engines.directory.decoder_config import DecoderConfig, decoder_config
from engines.directory.families import ACTIVATIONS, LINEARS
from engines.directory.rope import Rope
from engines.errors import EngineDirectoryError

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "granite": "GraniteForCausalLM",
}
"""`model_type` of the supported models -> TensorRT-LLM's name for them."""

_NO_ORACLE = "NVIDIA's exporter, which conversions are checked with, refuses it"
_UNKNOWN = "TensorRT-LLM 1.2 does not have it"
_EXPERTS = "experts are not converted"
REFUSED = {
    "gemma2": _NO_ORACLE,
    "gemma3_text": _NO_ORACLE,
    "phi3": _NO_ORACLE,
    "cohere": "NVIDIA's exporter, which conversions are checked with, loses its norms",
    "cohere2": _UNKNOWN,
    "glm": _UNKNOWN,
    "glm4": _UNKNOWN,
    "olmo2": _UNKNOWN,
    "olmo3": _UNKNOWN,
    "smollm3": _UNKNOWN,
    "stablelm": _UNKNOWN,
    "mixtral": _EXPERTS,
    "qwen3_moe": _EXPERTS,
    "olmoe": _EXPERTS,
}
"""`model_type` of other decoders that twofour knows -> why they are not converted."""

_ROPES = ("default", "linear", "dynamic", "llama3")


@dataclass(frozen=True, slots=True)
class Mapping:
    """How a model is spread over GPUs.

    Rank `r` is tensor-parallel rank `r % tp_size` of pipeline stage `r // tp_size`.
    """

    tp_size: int = 1
    pp_size: int = 1

    def __post_init__(self) -> None:
        for name in ("tp_size", "pp_size"):
            if getattr(self, name) < 1:
                raise EngineDirectoryError(f"{name} must be 1 or more, got {getattr(self, name)}")

    @property
    def world_size(self) -> int:
        """Number of ranks: one GPU and one engine file each."""
        return self.tp_size * self.pp_size


def convertible_decoder(config: dict[str, Any]) -> DecoderConfig:
    """The decoder that a Hugging Face `config.json` describes, if a conversion keeps all of it.

    Raises:
        EngineDirectoryError: see `engines.directory.decoder_config.decoder_config`; or the
            conversion would lose a feature of the model.
    """
    decoder = decoder_config(config)
    if decoder.model_type not in ARCHITECTURES:
        raise EngineDirectoryError(
            f"model_type {decoder.model_type!r} cannot be built for TensorRT-LLM"
            f" ({REFUSED[decoder.model_type]}); supported: {', '.join(ARCHITECTURES)}"
        )
    if shares_embedding(decoder) and not decoder.tied:
        raise EngineDirectoryError(
            f"tie_word_embeddings is false; TensorRT-LLM runs {decoder.model_type} with its"
            " embedding as head only"
        )
    if decoder.biases and decoder.model_type != "qwen2":
        field = "attention_bias" if LINEARS[0] in decoder.biases else "mlp_bias"
        raise EngineDirectoryError(
            f"{field} is set; {decoder.model_type} is converted to TensorRT-LLM without it only"
        )
    if decoder.rope.kind not in _ROPES:
        raise EngineDirectoryError(
            f"rotary scaling {decoder.rope.kind!r} cannot be converted to TensorRT-LLM;"
            f" supported: {', '.join(_ROPES)}"
        )
    decoder.rope.frequencies()  # whose fields TensorRT-LLM would not check
    return decoder


def checkpoint_config(decoder: DecoderConfig, dtype: str, mapping: Mapping) -> dict[str, Any]:
    """The checkpoint's `config.json`; `dtype` is `bfloat16` or `float16`."""
    config: dict[str, Any] = {
        "producer": {"name": "twofour", "version": version("twofour")},
        "architecture": ARCHITECTURES[decoder.model_type],
        "dtype": dtype,
        "logits_dtype": "float32",
        "vocab_size": decoder.vocab,
        "hidden_size": decoder.hidden,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads,
        "head_size": decoder.head_dim,
        "intermediate_size": decoder.intermediate,
        "hidden_act": next(name for name, gate in ACTIVATIONS.items() if gate == decoder.gate),
        "norm_epsilon": decoder.eps,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": decoder.context,
        "rotary_base": decoder.rope.theta,
        "rotary_scaling": _rotary_scaling(decoder.rope),
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "mapping": {
            "world_size": mapping.world_size,
            "tp_size": mapping.tp_size,
            "pp_size": mapping.pp_size,
        },
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
    }
    if decoder.model_type.startswith("qwen"):
        config |= {
            "qwen_type": decoder.model_type,
            "seq_length": decoder.context,
            "attn_bias": bool(decoder.biases),
            "moe_intermediate_size": 0,
            "moe_shared_expert_intermediate_size": 0,
            "tie_word_embeddings": decoder.tied,
        }
    if shares_embedding(decoder):
        config |= {"share_embedding_table": True, "use_parallel_embedding": mapping.tp_size > 1}
    if decoder.model_type == "granite":
        config |= {
            "embedding_multiplier": decoder.scales.embedding,
            # Of scores that are divided by the root of head_size already.
            "attention_multiplier": decoder.scales.attention * decoder.head_dim**0.5,
            "residual_multiplier": decoder.scales.residual,
            "output_multiplier_scale": decoder.scales.logit,
        }
    return config


def shares_embedding(decoder: DecoderConfig) -> bool:
    """Whether TensorRT-LLM reads the head from the embedding, which then is cut over the ranks."""
    return decoder.model_type == "gemma"


def check_mapping(decoder: DecoderConfig, mapping: Mapping) -> None:
    """Raise EngineDirectoryError unless the model can be cut in this many parts."""
    tp, pp = mapping.tp_size, mapping.pp_size
    if pp > 1 and shares_embedding(decoder):
        raise EngineDirectoryError(
            f"pp_size is {pp}; TensorRT-LLM keeps embedding and head of {decoder.model_type} in one"
            " stage: use pp_size 1"
        )
    for name, count in (
        ("num_attention_heads", decoder.heads),
        ("intermediate_size", decoder.intermediate),
    ):
        if count % tp:
            raise EngineDirectoryError(f"{name} {count} is not a multiple of tp_size {tp}")
    kv = decoder.kv_heads
    if kv % tp and tp % kv:
        raise EngineDirectoryError(
            f"{kv} key-value heads can be neither split nor repeated over tp_size {tp}"
        )
    if decoder.layers % pp:
        raise EngineDirectoryError(
            f"num_hidden_layers {decoder.layers} is not a multiple of pp_size {pp}"
        )


def _rotary_scaling(rope: Rope) -> dict[str, Any] | None:
    if rope.kind == "default":
        return None
    return {"type": rope.kind, "rope_type": rope.kind, **rope.fields}
