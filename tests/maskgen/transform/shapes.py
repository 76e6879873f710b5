"""Tiny models of every architecture in the table of groups, as `make_tiny_llama` takes them."""

from __future__ import annotations

from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "llama-tied": {"architecture": "llama"},
    "llama-biases": {
        "architecture": "llama",
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 8,
    },
    "mistral-multi-query": {"architecture": "mistral", "num_key_value_heads": 1},
    "qwen2-all-heads": {"architecture": "qwen2", "num_key_value_heads": 4},
    "qwen3-norms": {"architecture": "qwen3", "num_attention_heads": 6, "num_key_value_heads": 3},
    "gemma3": {
        "architecture": "gemma3_text",
        "head_dim": 16,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10_000.0}
            for kind in ("full_attention", "sliding_attention")
        },
    },
}
