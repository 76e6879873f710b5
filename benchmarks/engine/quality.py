"""Perplexity of every arm that `twofour bench engine` times.

Run it as `python -m benchmarks.engine.quality`.

Our arms are scored by the engine that is timed, from its own prompt log-probs, and by torch in
fp32 besides (`torch-sparse`, `torch-dense`): the two must agree. Of a GGUF file the *weights* are
scored, dequantised, in torch in fp32; llama.cpp also rounds activations to 8 bits, which this does
not show.

Rows that are in docs/results/quality.json are not measured again unless `--redo` is given.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common.table import Row, Table
from maskgen.data import TextSet, load_texts
from maskgen.evaluate import joined_tokens, measure_perplexity
from maskgen.maskfile import base_digest, read_mask
from maskgen.models import resolve_model
from twofour.scoring import Subject, engine_subject, torch_subject


def main() -> None:
    """Score the arms that the arguments give."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="alias or directory")
    parser.add_argument("--mask", type=Path, required=True, help="mask of the sparse arm")
    parser.add_argument("--sparse", type=Path, help="engine directory built with --mask")
    parser.add_argument("--dense", type=Path, help="engine directory without masks")
    parser.add_argument("--gguf", action="append", default=[], help="TYPE=FILE (repeat)")
    parser.add_argument("--data", required=True, help="text, as `twofour eval` takes it")
    parser.add_argument("--windows", type=int, default=16, help="of 2048 tokens")
    parser.add_argument("--redo", action="store_true")
    given = parser.parse_args()
    texts = load_texts(given.data)
    inputs = {
        "text": texts.digest,
        "model": base_digest(resolve_model(given.model)),
        "mask": read_mask(given.mask).digest,
        "windows": str(given.windows),
    }
    command = "python -m benchmarks.engine.quality " + shlex.join(sys.argv[1:])
    table = Table("quality", ("arm",), command, inputs, given.redo)
    for arm, score in _arms(given, texts).items():
        if table.measure((arm,), score):
            print(f"{arm}: {table[(arm,)]['perplexity']:.3f}", file=sys.stderr)


def _arms(given: argparse.Namespace, texts: TextSet) -> dict[str, Callable[[], Row]]:
    arms: dict[str, Callable[[], Row]] = {}
    for arm, directory in (("sparse", given.sparse), ("dense", given.dense)):
        if directory is not None:
            mask = given.mask if arm == "sparse" else None
            arms[arm] = partial(_by_engine, directory, texts, given.windows)
            arms[f"torch-{arm}"] = partial(_by_torch, given.model, mask, texts, given.windows)
    for spec in given.gguf:
        name, found, file = spec.partition("=")
        if not found or not Path(file).is_file():
            raise SystemExit(f"error: --gguf {spec!r} is not TYPE=FILE, or there is no such file")
        arms[f"llama.cpp-{name}"] = partial(_by_gguf, Path(file), given.model, texts, given.windows)
    return arms


def _by_engine(directory: Path, texts: TextSet, windows: int) -> Row:
    with engine_subject(directory, None) as subject:
        return _row(subject, texts, windows)


def _by_torch(model: str, mask: Path | None, texts: TextSet, windows: int) -> Row:
    return _row(torch_subject(model, mask, None, "fp32"), texts, windows)


def _by_gguf(gguf: Path, model: str, texts: TextSet, windows: int) -> Row:
    return _row(_gguf_subject(gguf, model), texts, windows)


def _row(subject: Subject, texts: TextSet, windows: int) -> Row:
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

    from maskgen.hf import TorchScorer, encoder, load_tokenizer
    from twofour.scoring import TokenScore

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        trust_remote_code=False,
    )
    scorer = TorchScorer(loaded.eval())
    tokenizer = load_tokenizer(resolve_model(model))
    return Subject(
        token_scores=lambda tokens: [TokenScore(*score) for score in scorer.tokens(tokens)],
        encode=encoder(tokenizer),
        model=gguf.name,
        mask=None,
        dtype="fp32",
        bos_token_id=tokenizer.bos_token_id,
        context_length=loaded.config.max_position_embeddings,
    )


if __name__ == "__main__":
    main()
