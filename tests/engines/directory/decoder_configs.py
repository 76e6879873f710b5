"""Random `config.json`s of tiny decoders, in the notations of transformers 4 and 5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

EPS = st.sampled_from([1e-5, 0.5])
ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
PARTIAL = {"stablelm": 0.25, "phi3": 1.0, "glm": 0.5, "glm4": 0.5}
"""Families whose rope may turn a part of a head -> the part that it turns if nothing is said."""
FIXED_HEADS = ("cohere2", "stablelm", "phi3", "olmoe")
"""Families whose head_dim is hidden_size over the number of heads."""
COUNTED_HEADS = (
    *("mistral", "gemma", "gemma2", "gemma3_text", "stablelm", "glm", "glm4"),
    *("mixtral", "qwen3_moe"),
)
"""Families whose `num_key_value_heads` is no null."""
TYPED = ("gemma2", "gemma3_text", "olmo3", "cohere2")
"""Families whose `layer_types` alone say which layers have windows."""


@st.composite
def decoder_configs(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """Fields of a tiny decoder; what the architecture leaves open is often absent or null."""
    context, layers = draw(st.sampled_from([48, 96])), draw(st.integers(1, 3))
    heads, hidden = draw(st.sampled_from([2, 4, 8])), draw(st.sampled_from([64, 96]))
    head_dim = draw(st.sampled_from([8, 16, None])) if kind not in FIXED_HEADS else None
    config: dict[str, Any] = {
        "model_type": kind,
        "vocab_size": 300,
        "hidden_size": hidden,
        "intermediate_size": draw(st.sampled_from([64, 100])),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": context,
        "initializer_range": 0.15,
    }
    if kind in ("smollm3", "phi3", "glm", "glm4"):
        config["pad_token_id"] = None  # its own is beyond a small vocabulary
    if head_dim is not None:
        config["head_dim"] = head_dim
    key_value_heads = [1, 2, heads] + ([None] if kind not in COUNTED_HEADS else [])
    may_be_silent = kind in ("glm", "glm4") or (kind, heads) == ("mistral", 8)
    if not may_be_silent or draw(st.booleans()):
        config["num_key_value_heads"] = draw(st.sampled_from(key_value_heads))
    optional = {
        "rms_norm_eps": EPS,
        "tie_word_embeddings": st.booleans(),
        "attention_bias": st.booleans(),
        "mlp_bias": st.booleans(),
    }
    if not kind.startswith("gemma"):
        optional["hidden_act"] = st.just("silu")
    config |= draw(st.fixed_dictionaries({}, optional=optional))
    config |= draw(windows(kind, context, layers))
    config |= draw(own_fields(kind, layers))
    if kind == "mixtral" and head_dim is None:
        # With another rope transformers multiplies the null (modeling_rope_utils.py).
        return config | draw(one_rope(context, hidden // heads, ("default", "linear")))
    silent = {"qwen3": 128, "gemma": 256, "gemma2": 256, "gemma3_text": 256}
    silent |= {"glm": 128, "glm4": 128}
    return config | draw(ropes(kind, context, head_dim or silent.get(kind, hidden // heads)))


@st.composite
def own_fields(draw: st.DrawFn, kind: str, layers: int) -> dict[str, Any]:
    """Fields that one family alone has."""
    scale, cap = st.sampled_from([0.25, 1.0, 3]), st.sampled_from([None, 2.0, 30.0])
    fields: dict[str, dict[str, st.SearchStrategy[Any]]] = {
        "gemma": {"hidden_act": st.sampled_from(["gelu", "gelu_pytorch_tanh"])},
        "gemma2": {
            "hidden_activation": st.just("gelu_pytorch_tanh"),
            "query_pre_attn_scalar": st.sampled_from([4, 64]),
            "attn_logit_softcapping": cap,
            "final_logit_softcapping": cap,
        },
        "smollm3": {
            "no_rope_layers": st.lists(st.integers(0, 1), min_size=layers, max_size=layers),
            "no_rope_layer_interval": st.integers(1, 3),
        },
        "granite": {
            "embedding_multiplier": scale,
            "residual_multiplier": scale,
            "logits_scaling": st.sampled_from([1.0, 3, 8.0]),
        },
        "cohere": {
            "logit_scale": st.sampled_from([0.0625, 0.25, 1.0]),
            "layer_norm_eps": EPS,
        },
        "stablelm": {"use_qkv_bias": st.booleans(), "layer_norm_eps": EPS},
    }
    fields["gemma3_text"] = {
        **fields["gemma2"],
        "attn_logit_softcapping": st.none(),
        "sliding_window_pattern": st.integers(1, 3),
        "use_bidirectional_attention": st.just(False),
    }
    fields["cohere2"] = fields["cohere"]
    fields["qwen3_moe"] = {
        "norm_topk_prob": st.booleans(),
        "decoder_sparse_step": st.integers(1, 2),
        "mlp_only_layers": st.sampled_from([None, [], [0], [1, 5]]),
    }
    fields["olmoe"] = {"norm_topk_prob": st.booleans(), "clip_qkv": st.none()}
    # Its own of 1 makes scores so sharp that the engine's rounding would show.
    always = {"granite": {"attention_multiplier": st.sampled_from([0.1, 0.25])}}
    found = draw(st.fixed_dictionaries(always.get(kind, {}), optional=fields.get(kind, {})))
    return found | draw(mixtures(kind)) if kind in COUNTS else found


COUNTS = {
    "mixtral": ["num_local_experts"],
    "qwen3_moe": ["num_experts", "num_local_experts"],  # of transformers 4, and of 5
    "olmoe": ["num_experts"],
}
"""Families with experts -> fields that say how many."""


@st.composite
def mixtures(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """How many experts there are, and how many a token goes to."""
    experts = draw(st.integers(1, 5))
    fields = {
        draw(st.sampled_from(COUNTS[kind])): experts,
        "num_experts_per_tok": draw(st.integers(1, experts)),
    }
    if kind == "qwen3_moe":
        fields["moe_intermediate_size"] = draw(st.sampled_from([32, 36, 100]))
    return fields


@st.composite
def windows(draw: st.DrawFn, kind: str, context: int, layers: int) -> dict[str, Any]:
    """Fields of attention windows, also those that the architecture does not look at."""
    optional = {
        "sliding_window": st.sampled_from([None, 3, 20, context, 4096]),
        "use_sliding_window": st.booleans(),
        "max_window_layers": st.integers(0, 4),
    }
    config: dict[str, Any] = draw(st.fixed_dictionaries({}, optional=optional))
    if kind in TYPED:
        config["sliding_window"] = draw(st.sampled_from([3, 20, context, 4096]))
        if draw(st.booleans()):
            types = st.sampled_from(["full_attention", "sliding_attention"])
            config["layer_types"] = draw(st.lists(types, min_size=layers, max_size=layers))
        return config
    if kind in ("qwen2", "qwen3", "smollm3") and draw(st.booleans()):
        silent = None if kind == "smollm3" else 4096
        windowed = config.get("use_sliding_window") and config.get("sliding_window", silent)
        types = ["full_attention"] + (["sliding_attention"] if windowed else [])
        kinds = st.lists(st.sampled_from(types), min_size=layers, max_size=layers)
        config["layer_types"] = draw(kinds)
    return config


@st.composite
def ropes(draw: st.DrawFn, kind: str, context: int, head_dim: int) -> dict[str, Any]:
    """Fields of a rotary embedding, or of one per type of layers."""
    if kind in PARTIAL:
        share = draw(st.sampled_from([None, 0.25, 0.5, 1.0]))
        turned = int(head_dim * (PARTIAL[kind] if share is None else share))
        if turned % 2 or turned < 4:
            share, turned = 1.0, head_dim
        kinds = ("default", "longrope") if kind == "phi3" else ROPE_KINDS
        one = draw(one_rope(context, turned, kinds))
        place = one.get("rope_parameters", one) if draw(st.booleans()) else one
        if share is not None:
            place["partial_rotary_factor"] = share
        return one
    if kind not in ("gemma3_text", "olmo3"):
        return draw(one_rope(context, head_dim))
    # Of typed ropes transformers does not see this field (modeling_rope_utils.py).
    typed = one_rope(context, head_dim).filter(lambda rope: "truncate" not in str(rope))
    one = draw(typed)
    if "rope_parameters" not in one:  # version 4: scaled for layers that see all alone
        theta = {"rope_local_base_freq": draw(st.sampled_from([100.0, 5000.0]))}
        return one | (theta if kind == "gemma3_text" and draw(st.booleans()) else {})
    other = draw(typed.filter(lambda rope: len(rope) == 1))
    local = other.get("rope_parameters", {"rope_type": "default"})
    return one | {
        "rope_parameters": {"full_attention": one["rope_parameters"], "sliding_attention": local}
    }


@st.composite
def one_rope(
    draw: st.DrawFn, context: int, head_dim: int, kinds: Sequence[str] = ROPE_KINDS
) -> dict[str, Any]:
    """Fields of a rotary embedding."""
    number = st.sampled_from([1.0, 2.0, 4, 7.5])
    kind = draw(st.sampled_from(kinds))
    rope: dict[str, Any] = {} if kind in ("default", "longrope") else {"factor": draw(number)}
    pretrained = draw(st.sampled_from([16, 32]))
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": draw(st.sampled_from([2.0, 4.0]))}
    if kind == "yarn":
        rope |= draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "attention_factor": st.sampled_from([None, 0.8]),
                    "mscale": st.sampled_from([None, 0.707, 1.0]),
                    "mscale_all_dim": st.sampled_from([0.5, 1.0]),
                    "beta_fast": st.sampled_from([None, 32.0, 4.0]),
                    "beta_slow": st.sampled_from([1.0, 0.5]),
                    "truncate": st.booleans(),
                },
            )
        )
    if kind == "longrope":
        pretrained = draw(st.sampled_from([context // 2, context, 2 * context]))
        half = head_dim // 2
        factors = st.lists(st.sampled_from([1.0, 1.5, 3.0]), min_size=half, max_size=half)
        rope |= {"short_factor": draw(factors), "long_factor": draw(factors)}
        rope |= {"factor": draw(number)}
    beside: dict[str, Any] = {}
    if kind in ("llama3", "yarn", "longrope") and (kind == "longrope" or draw(st.booleans())):
        (rope if draw(st.booleans()) else beside)["original_max_position_embeddings"] = pretrained
    theta = draw(st.sampled_from([None, 100.0, 10000, 500000.0]))
    if draw(st.booleans()):  # version 5
        rope = {"rope_type": kind, **rope} | ({} if theta is None else {"rope_theta": theta})
        return beside | {"rope_parameters": rope}
    beside |= {} if theta is None else {"rope_theta": theta}
    if kind == "default" and draw(st.booleans()):
        return beside | {"rope_scaling": None}
    return beside | {"rope_scaling": {draw(st.sampled_from(["type", "rope_type"])): kind, **rope}}
