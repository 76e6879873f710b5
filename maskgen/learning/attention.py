"""Causal attention from plain matrix products, for short training sequences on the CPU.

torch's fused attention multiplies bfloat16 without the processor's bfloat16 instructions; for
sequences of a few hundred tokens the plain form, whose products do use them, takes about 60 % of
its time forward and backward (4 sequences of 512 tokens, 9 heads of 64: 60 ms against 97 ms of
processor time on Zen 5), and memory that is quadratic in the sequence is still small.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ATTENTION_IMPLEMENTATION = "twofour_short"
LONGEST = 1024
_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


def short_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (B, heads, T, D) in, (B, T, heads, D) out; causal."""
    if attention_mask is not None or dropout:
        raise ValueError("short_attention is causal only: no padding, no dropout")
    batch, heads, length, width = query.shape
    kv_heads = key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    # Query heads that share a key head become rows of one product.
    rows = (query * scale).reshape(batch * kv_heads, -1, width)
    scores = rows @ key.reshape(batch * kv_heads, length, width).transpose(1, 2)
    future = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    scores = scores.view(batch * heads, length, length).masked_fill_(future, float("-inf"))
    weights = torch.softmax(scores, dim=-1).view(batch * kv_heads, -1, length)
    output = weights @ value.reshape(batch * kv_heads, length, width)
    return output.view(batch, heads, length, width).transpose(1, 2), None


def use_short_attention(model: Any, sequence_length: int) -> str:
    """Switch the model to `short_attention` where it is known to be right and faster.

    Returns:
        Which attention the model has now and, if it is not that one, why; for people.
    """
    reason = _unsuited(model, sequence_length)
    if reason is not None:
        return f"{model.config._attn_implementation} attention, because {reason}"
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_IMPLEMENTATION, short_attention)
    model.set_attn_implementation(ATTENTION_IMPLEMENTATION)
    return f"{ATTENTION_IMPLEMENTATION} attention"


def _unsuited(model: Any, sequence_length: int) -> str | None:
    parameter = next(model.parameters())
    config = model.config
    if parameter.device.type != "cpu" or parameter.dtype != torch.bfloat16:
        return f"weights are {parameter.dtype} on {parameter.device}, not bfloat16 on the CPU"
    if sequence_length > LONGEST:
        return f"sequences of {sequence_length} tokens are longer than {LONGEST}"
    if config.model_type not in _MODEL_TYPES:
        return f"{config.model_type} models were not tried with {ATTENTION_IMPLEMENTATION}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "the model has an attention window"
    return None
