"""A Hugging Face configuration as TensorRT-LLM's checkpoint configuration."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from engines.directory.decoder_config import DecoderConfig, decoder_config
from engines.directory.families import LINEARS
from engines.directory.rope import Rope
from engines.errors import EngineDirectoryError

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""`model_type` of the supported models -> TensorRT-LLM's name for them."""

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
            f"model_type {decoder.model_type!r} is not converted to TensorRT-LLM; supported:"
            f" {', '.join(ARCHITECTURES)}"
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
        "hidden_act": "silu",
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
    return config


def check_mapping(decoder: DecoderConfig, mapping: Mapping) -> None:
    """Raise EngineDirectoryError unless the model can be cut in this many parts."""
    tp, pp = mapping.tp_size, mapping.pp_size
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
