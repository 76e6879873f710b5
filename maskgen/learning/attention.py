"""Causal attention for learning on the CPU: plain bf16 products, a block of queries at a time.

torch's fused attention multiplies bf16 without the processor's bf16 instructions. Plain products
use them; taken for a block of queries over the keys up to its end, they compute next to nothing of
what the causal mask hides, and a block's scores stay in cache; how much faster that is measures
`findings/torch-cpu-fused-attention-gains-nothing-from-bf16.sh`.

Scores are rounded to bf16 before the softmax, as in transformers' plain attention, where the fused
one keeps fp32. Evaluation keeps the fused one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BLOCKED_ATTENTION = "twofour_blocked"
"""Its name among transformers' attention implementations."""
LONGEST = 1024
"""Tokens of a sequence that is learned from: blocks keep all weights for the backward pass, memory
that is quadratic in the sequence."""
_BLOCK = 128  # queries; 64 to 256 are as fast


def use_blocked_attention(model: Any, sequence_length: int) -> str:
    """Give a model on this CPU attention by blocks in place of torch's fused one, if that pays.

    Args:
        model: a causal language model of transformers.
        sequence_length: tokens of a sequence that is learned from.

    Returns:
        Which attention the model has now and, if it is not that one, why; for people.
    """
    before, device = model.config._attn_implementation, next(model.parameters()).device
    reason = None
    if device.type != "cpu":
        reason = f"the model is on {device}"
    elif not torch.cpu._is_avx512_bf16_supported():
        reason = "the processor has no bf16 instructions"
    elif sequence_length > LONGEST:
        reason = f"sequences of {sequence_length} tokens are longer than {LONGEST}"
    elif before != "sdpa":
        reason = f"transformers runs {model.config.model_type} models with it"
    if reason is not None:
        return f"{before} attention, because {reason}"
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(BLOCKED_ATTENTION, blocked_attention)
    AttentionMaskInterface.register(BLOCKED_ATTENTION, sdpa_mask)
    model.set_attn_implementation(BLOCKED_ATTENTION)
    if model.config._attn_implementation != BLOCKED_ATTENTION:
        return f"{before} attention, because transformers cannot change it in this model"
    return f"{BLOCKED_ATTENTION} attention{_exception(model, sequence_length)}"


def _exception(model: Any, sequence_length: int) -> str:
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if not window or window >= sequence_length or not getattr(config, "use_sliding_window", True):
        return ""
    return f", but torch's in layers with a window of {window} tokens"


def blocked_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: (B, heads, T, D) in, (B, T, heads, D) out.

    What is not in bf16, plainly causal and over as many keys as queries (a window, padding, a
    cache, dropout, additions to the scores) goes to transformers' function of torch's attention.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else query.dtype
    causal = options.pop("is_causal", None)
    if causal is None:
        causal = getattr(module, "is_causal", True)
    added = any(options.get(name) is not None for name in ("position_bias", "s_aux", "softcap"))
    plain = causal and attention_mask is None and not dropout and not added
    if not plain or dtype != torch.bfloat16 or query.shape[2] != key.shape[2]:
        fused: Any = sdpa_attention_forward
        output, _ = fused(
            module, query, key, value, attention_mask, dropout, scaling, causal, **options
        )
        return output, None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast("cpu", enabled=False):
        output = _attend((query * scale).to(dtype), key.to(dtype), value.to(dtype))
    return output.transpose(1, 2).contiguous(), None


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(B, heads, T, width of values) of scaled queries; there may be fewer key heads."""
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    shared = query.reshape(batch, groups, heads // groups, length, width)
    keys = key.transpose(2, 3).flatten(0, 1)
    values = value.flatten(0, 1)
    future = query.new_full((_BLOCK, _BLOCK), float("-inf")).triu_(1)
    outputs: list[Tensor] = []
    for start in range(0, length, _BLOCK):
        end = min(start + _BLOCK, length)
        rows = end - start
        # Query heads that share a key head become rows of one product.
        block = shared[:, :, :, start:end].reshape(batch * groups, -1, width)
        scores = torch.bmm(block, keys[..., :end]).view(batch * heads, rows, end)
        scores[..., start:] += future[:rows, :rows]
        weights = torch.softmax(scores, dim=-1).view(batch * groups, -1, end)
        outputs.append(torch.bmm(weights, values[:, :end]).view(batch, heads, rows, -1))
    return torch.cat(outputs, dim=2)
