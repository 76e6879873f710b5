"""Perplexity of every arm that `twofour bench engine speed` times (`twofour bench quality`).

Our arms are scored by the engine that is timed, from its own prompt log-probs, and by torch in
fp32 besides (`torch-sparse`, `torch-dense`): the two must agree. Of a GGUF file the *weights* are
scored, dequantised, in torch in fp32; llama.cpp also rounds activations to 8 bits, which this does
not show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.result_file import ResultRow
from evaluation.engine_subject import engine_subject
from evaluation.perplexity import joined_tokens, measure_perplexity
from evaluation.subject import Subject
from evaluation.torch_subject import torch_subject
from maskgen.models import resolve_model
from maskgen.texts.text_sets import TextSet

KEY = ("arm",)
"""What names a row."""


def quality_arms(
    model: str,
    mask: Path,
    directories: Mapping[str, Path],
    gguf: Mapping[str, Path],
    texts: TextSet,
    windows: int,
) -> dict[str, Callable[[], ResultRow]]:
    """How the row of each arm is measured.

    Args:
        model: alias or directory.
        mask: of the sparse arm.
        directories: engine directories of `sparse` (built with `mask`) and `dense`, or one of them.
        gguf: arm -> file.
        texts: to score.
        windows: of 2,048 tokens.
    """
    arms: dict[str, Callable[[], ResultRow]] = {}
    for arm, directory in directories.items():
        arms[arm] = partial(_by_engine, directory, texts, windows)
        used = mask if arm == "sparse" else None
        arms[f"torch-{arm}"] = partial(_by_torch, model, used, texts, windows)
    for arm, file in gguf.items():
        arms[arm] = partial(_by_gguf, file, model, texts, windows)
    return arms


def _by_engine(directory: Path, texts: TextSet, windows: int) -> ResultRow:
    with engine_subject(directory, None) as subject:
        return _row(subject, texts, windows)


def _by_torch(model: str, mask: Path | None, texts: TextSet, windows: int) -> ResultRow:
    return _row(torch_subject(model, None, mask, None, "fp32"), texts, windows)


def _by_gguf(gguf: Path, model: str, texts: TextSet, windows: int) -> ResultRow:
    return _row(_gguf_subject(gguf, model), texts, windows)


def _row(subject: Subject, texts: TextSet, windows: int) -> ResultRow:
    tokens = joined_tokens(subject.encode, texts)
    value, count, available = measure_perplexity(subject.score, tokens, windows=windows)
    return {
        "perplexity": round(value, 4),
        "windows": count,
        "windows_available": available,
        "dtype": subject.dtype,
        "mask": subject.mask,
    }


def _gguf_subject(gguf: Path, model: str) -> Subject:
    """The weights of a GGUF file in torch, with the tokenizer of `model`."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    from evaluation.subject import TokenScore
    from maskgen.format.tokenizer import ModelTokenizer
    from maskgen.torch_model import TorchScorer

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        trust_remote_code=False,
    )
    scorer = TorchScorer(loaded.eval())
    tokenizer = ModelTokenizer(resolve_model(model))
    return Subject(
        token_scores=lambda tokens: [TokenScore(*score) for score in scorer.tokens(tokens)],
        encode=tokenizer.encode,
        model=gguf.name,
        mask=None,
        dtype="fp32",
        bos_token_id=tokenizer.bos_token_id,
        context_length=loaded.config.max_position_embeddings,
    )
