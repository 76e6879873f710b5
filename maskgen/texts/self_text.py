"""Calibration text that the model writes itself (`--data self`).

The text is sampled from the model's own distribution, so it needs no data and no licence
(Williams et al., "Self-calibration for Language Model Quantization and Pruning", NAACL 2025).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskgen.format.tokenizer import ModelTokenizer
from maskgen.texts.text_sets import DataError, TextSet, load_texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DOCUMENT_TOKENS = 512
_BATCH = 16


def calibration_texts(
    data: str, model_dir: Path, *, tokens: int, seed: int, dtype: str = "auto"
) -> TextSet:
    """The texts of a data argument for calibration or learning, `self` included.

    Args:
        data: see `maskgen.texts.text_sets`; `self` lets the model in `model_dir` write the text.
        tokens: how many tokens will be needed; only `self` looks at it.
        seed: of the sampling, for `self`.
        dtype: of the computation, for `self`.

    Raises:
        DataError: the argument names nothing readable, or holds no text.
    """
    if data != "self":
        return load_texts(data)
    from maskgen.torch_model import load_model

    # A tenth more, because text that is tokenised anew may come out shorter than it was written.
    return write_self_texts(
        load_model(model_dir, dtype),
        ModelTokenizer(model_dir),
        tokens=tokens + tokens // 10,
        seed=seed,
    )


def write_self_texts(
    model: PreTrainedModel,
    tokenizer: ModelTokenizer,
    *,
    tokens: int,
    seed: int,
) -> TextSet:
    """About `tokens` tokens of text sampled from `model`, the same for the same seed and machine.

    Each document starts from the tokenizer's BOS token (or the model's, or token 0) and is sampled
    at temperature 1 without any filter, 512 tokens at most, or as many as the context holds.

    Raises:
        DataError: the model ends every text at once.
        ValueError: the model's vocabulary lacks the token that documents start from.
    """
    import torch

    from maskgen.torch_model import check_tokens, context_length

    starts = (tokenizer.bos_token_id, model.config.bos_token_id, 0)
    start = next(token for token in starts if token is not None)
    check_tokens(model, [start])
    length = min(_DOCUMENT_TOKENS, (context_length(model) or _DOCUMENT_TOKENS + 1) - 1)
    prompt = torch.full((_BATCH, 1), start, device=model.device)
    paddings = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    padding = next(t for t in paddings if t is not None and t not in tokenizer.stray_tokens)
    generate: Any = model.generate
    texts: list[str] = []
    written = 0
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        while written < tokens:
            batch = generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=length,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                pad_token_id=padding,
            )
            texts += [
                tokenizer.decode(row, skip_special_tokens=True) for row in batch[:, 1:].tolist()
            ]
            # A document that ended early is filled up with padding, which is no text.
            new = int((batch[:, 1:] != padding).sum())
            if new == 0:
                raise DataError("the model ends every text at once; it cannot write its own")
            written += new
    return TextSet.of("self", texts)
