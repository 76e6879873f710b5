"""A Hugging Face configuration as TensorRT-LLM's checkpoint configuration."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from engines.errors import EngineDirectoryError

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""`model_type` of the supported models -> TensorRT-LLM's name for them."""

_PLAIN_ROPE = ("default", None)
_SCALED_ROPE = ("linear", "dynamic", "llama3")


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


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the conversion needs to know of a model.

    Attributes:
        model_type: `llama`, `mistral`, `qwen2` or `qwen3`.
        head_size: width of one attention head.
        qkv_bias: whether q, k and v have a bias (Qwen2).
        qk_norm: whether q and k are normalised per head (Qwen3).
        rotary_scaling: position scaling with its `type`, or None.
        sliding_window: attention reaches this many tokens back; None is all of them.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_size: int
    intermediate_size: int
    hidden_act: str
    norm_epsilon: float
    max_position_embeddings: int
    rotary_base: float
    rotary_scaling: dict[str, Any] | None
    tie_word_embeddings: bool
    sliding_window: int | None

    @property
    def qkv_bias(self) -> bool:
        return self.model_type == "qwen2"

    @property
    def qk_norm(self) -> bool:
        return self.model_type == "qwen3"


def read_shape(config: dict[str, Any]) -> ModelShape:
    """The shape that a Hugging Face `config.json` describes.

    Raises:
        EngineDirectoryError: a field is missing, or the model has a feature that the conversion
            would lose.
    """
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        raise EngineDirectoryError(
            f"model_type {model_type!r} cannot be converted to TensorRT-LLM;"
            f" supported: {', '.join(ARCHITECTURES)}"
        )
    for name in ("attention_bias", "mlp_bias"):
        if config.get(name):
            raise EngineDirectoryError(f"{name} is set; {model_type} is converted without it only")
    act = config.get("hidden_act")
    if act != "silu":
        raise EngineDirectoryError(f"hidden_act is {act!r}; only 'silu' can be converted")
    heads, hidden = _whole(config, "num_attention_heads"), _whole(config, "hidden_size")
    base, scaling = _rope(config)
    return ModelShape(
        model_type=str(model_type),
        vocab_size=_whole(config, "vocab_size"),
        hidden_size=hidden,
        num_hidden_layers=_whole(config, "num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=_whole(config, "num_key_value_heads", heads),
        head_size=_whole(config, "head_dim", hidden // heads),
        intermediate_size=_whole(config, "intermediate_size"),
        hidden_act="silu",
        norm_epsilon=float(config.get("rms_norm_eps", 1e-6)),
        max_position_embeddings=_whole(config, "max_position_embeddings"),
        rotary_base=base,
        rotary_scaling=scaling,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        sliding_window=_sliding_window(config),
    )


def checkpoint_config(shape: ModelShape, dtype: str, mapping: Mapping) -> dict[str, Any]:
    """The checkpoint's `config.json`; `dtype` is `bfloat16` or `float16`."""
    config: dict[str, Any] = {
        "producer": {"name": "twofour", "version": version("twofour")},
        "architecture": ARCHITECTURES[shape.model_type],
        "dtype": dtype,
        "logits_dtype": "float32",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_size": shape.head_size,
        "intermediate_size": shape.intermediate_size,
        "hidden_act": shape.hidden_act,
        "norm_epsilon": shape.norm_epsilon,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": shape.max_position_embeddings,
        "rotary_base": shape.rotary_base,
        "rotary_scaling": shape.rotary_scaling,
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "mapping": {
            "world_size": mapping.world_size,
            "tp_size": mapping.tp_size,
            "pp_size": mapping.pp_size,
        },
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
    }
    if shape.model_type.startswith("qwen"):
        config |= {
            "qwen_type": shape.model_type,
            "seq_length": shape.max_position_embeddings,
            "attn_bias": shape.qkv_bias,
            "moe_intermediate_size": 0,
            "moe_shared_expert_intermediate_size": 0,
            "tie_word_embeddings": shape.tie_word_embeddings,
        }
    return config


def check_mapping(shape: ModelShape, mapping: Mapping) -> None:
    """Raise EngineDirectoryError unless the model can be cut in this many parts."""
    tp, pp = mapping.tp_size, mapping.pp_size
    for name in ("num_attention_heads", "intermediate_size"):
        if getattr(shape, name) % tp:
            raise EngineDirectoryError(
                f"{name} {getattr(shape, name)} is not a multiple of tp_size {tp}"
            )
    kv = shape.num_key_value_heads
    if kv % tp and tp % kv:
        raise EngineDirectoryError(
            f"{kv} key-value heads can be neither split nor repeated over tp_size {tp}"
        )
    if shape.num_hidden_layers % pp:
        raise EngineDirectoryError(
            f"num_hidden_layers {shape.num_hidden_layers} is not a multiple of pp_size {pp}"
        )


def _whole(config: dict[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise EngineDirectoryError(f"config.json: {name} is {value!r}, expected a positive number")
    return value


def _rope(config: dict[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Base and scaling; transformers 5 keeps both in `rope_parameters`, older ones apart."""
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    base = float(parameters.pop("rope_theta", None) or config.get("rope_theta") or 10000.0)
    if float(parameters.pop("partial_rotary_factor", 1.0)) != 1.0:
        raise EngineDirectoryError("partial_rotary_factor below 1 cannot be converted")
    kind = parameters.pop("rope_type", None) or parameters.pop("type", None)
    if kind in _PLAIN_ROPE:
        return base, None
    if kind not in _SCALED_ROPE:
        raise EngineDirectoryError(
            f"rotary scaling {kind!r} cannot be converted; supported: {', '.join(_SCALED_ROPE)}"
        )
    return base, {"type": kind, "rope_type": kind, **parameters}


def _sliding_window(config: dict[str, Any]) -> int | None:
    if config.get("use_sliding_window") is False:
        return None
    window = config.get("sliding_window")
    return int(window) if window else None
