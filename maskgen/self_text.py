"""Calibration text that the model writes itself (`--data self`).

The text is sampled from the model's own distribution, so it needs no data and no licence
(Williams et al., "Self-calibration for Language Model Quantization and Pruning", NAACL 2025).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from maskgen.data import TextSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DOCUMENT_TOKENS = 512
_BATCH = 16


def write_self_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokens: int,
    seed: int,
) -> TextSet:
    """About `tokens` tokens of text sampled from `model`, the same for the same seed and machine.

    Each document starts from the tokenizer's BOS token (or the model's, or token 0) and is sampled
    at temperature 1 without any filter, 512 tokens at most.
    """
    import torch

    starts = (tokenizer.bos_token_id, model.config.bos_token_id, 0)
    start = next(token for token in starts if token is not None)
    prompt = torch.full((_BATCH, 1), start, device=model.device)
    generate: Any = model.generate
    texts: list[str] = []
    written = 0
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        while written < tokens:
            batch = generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=_DOCUMENT_TOKENS,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
            )
            texts += tokenizer.batch_decode(batch[:, 1:], skip_special_tokens=True)
            written += batch.shape[0] * (batch.shape[1] - 1)
    return TextSet.of("self", texts)
