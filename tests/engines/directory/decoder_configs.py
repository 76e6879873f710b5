"""Random `config.json`s of tiny decoders, in the notations of transformers 4 and 5."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


@st.composite
def decoder_configs(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """Fields of a tiny decoder; what the architecture leaves open is often absent or null."""
    context, layers = draw(st.sampled_from([48, 96])), draw(st.integers(1, 3))
    heads, hidden = draw(st.sampled_from([2, 4, 8])), draw(st.sampled_from([64, 96]))
    head_dim = draw(st.sampled_from([8, 16, None]))
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
    if head_dim is not None:
        config["head_dim"] = head_dim
    key_value_heads = [1, 2, heads] + ([None] if kind != "mistral" else [])
    if (kind, heads) != ("mistral", 8) or draw(st.booleans()):
        config["num_key_value_heads"] = draw(st.sampled_from(key_value_heads))
    optional = {
        "rms_norm_eps": st.sampled_from([1e-5, 0.5]),
        "tie_word_embeddings": st.booleans(),
        "attention_bias": st.booleans(),
        "mlp_bias": st.booleans(),
        "hidden_act": st.just("silu"),
    }
    config |= draw(st.fixed_dictionaries({}, optional=optional))
    config |= draw(windows(kind, context, layers))
    silent = 128 if kind == "qwen3" else hidden // heads
    return config | draw(ropes(context, head_dim or silent))


@st.composite
def windows(draw: st.DrawFn, kind: str, context: int, layers: int) -> dict[str, Any]:
    """Fields of attention windows, also those that the architecture does not look at."""
    optional = {
        "sliding_window": st.sampled_from([None, 3, 20, context, 4096]),
        "use_sliding_window": st.booleans(),
        "max_window_layers": st.integers(0, 4),
    }
    config: dict[str, Any] = draw(st.fixed_dictionaries({}, optional=optional))
    if kind in ("qwen2", "qwen3") and draw(st.booleans()):
        windowed = config.get("use_sliding_window") and config.get("sliding_window", 4096)
        types = ["full_attention"] + (["sliding_attention"] if windowed else [])
        kinds = st.lists(st.sampled_from(types), min_size=layers, max_size=layers)
        config["layer_types"] = draw(kinds)
    return config


@st.composite
def ropes(draw: st.DrawFn, context: int, head_dim: int) -> dict[str, Any]:
    """Fields of a rotary embedding."""
    number = st.sampled_from([1.0, 2.0, 4, 7.5])
    kind = draw(st.sampled_from(["default", "linear", "dynamic", "llama3", "yarn", "longrope"]))
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
        pretrained = 2 * context
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
