"""Exported GGUF files, scored by llama.cpp's own program (`twofour bench export`).

`llama-perplexity` cuts a text as `evaluation.perplexity` does, and scores the second half of every
window; so does what is compared with it here, from the same log-probs that `twofour eval` sums.

Source: `perplexity` in tools/perplexity/perplexity.cpp of llama.cpp.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.page import markdown_table, number, page, percent
from benchmarks.common.result_file import ResultData, ResultRow
from evaluation.perplexity import SEPARATOR, joined_tokens
from evaluation.subject import Subject
from evaluation.torch_subject import torch_subject
from maskgen.texts.text_sets import TextSet

KEY = ("type",)
"""What names a row."""

_ESTIMATE = re.compile(r"Final estimate: PPL = ([0-9.]+)")
_SHOWN = 500  # characters of what a program said before it failed

_ABOUT = """
A masked model, exported by `twofour export`, in llama.cpp's own program: `llama-perplexity` scores
the second half of every window. *The file* is the same file read by twofour and scored in torch in
fp32, over the same tokens. *The model* is the masked model itself, before a
type rounds its weights. llama.cpp rounds activations to 8 bits before it multiplies with q8_0, and
twofour the values of a q8_0 file to bf16 when it reads them; how much of the difference is which
was not measured.
"""


class LlamaPerplexityError(ValueError):
    """llama.cpp's program failed, or said no perplexity."""


def export_row(
    program: Path,
    file: Path,
    model: str,
    mask: Path,
    texts: TextSet,
    folder: Path,
    *,
    window: int,
    windows: int,
) -> ResultRow:
    """Perplexity of an exported file in llama.cpp and in torch, and of the masked model in torch.

    Args:
        program: `llama-perplexity`.
        file: what was exported of `model` with `mask`.
        model: alias or directory.
        mask: the mask file.
        texts: to score.
        folder: for the text as the program reads it.
        window: tokens in a window.
        windows: how many.

    Raises:
        LlamaPerplexityError: the program failed.
        ValueError: the model's tokenizer puts a token before a text, or the text is too short.
    """
    subject = torch_subject(str(file), None, None, None, "fp32")
    tokens = joined_tokens(subject.encode, texts)
    if tokens[0] == subject.bos_token_id:
        raise ValueError(
            f"{model}: its tokenizer begins texts with token {subject.bos_token_id}, which"
            " llama-perplexity puts in the place of every window's first token: not comparable"
        )
    if len(tokens) < max(2, windows) * window:
        raise ValueError(
            f"the text has {len(tokens)} tokens; {windows} windows of {window} need"
            f" {max(2, windows) * window}"
        )
    text = folder / "text.txt"
    text.write_text(SEPARATOR.join(texts.texts), encoding="utf-8")
    theirs = llama_perplexity(program, file, text, window=window, windows=windows)
    ours = second_halves(subject, tokens, window=window, windows=windows)
    masked = torch_subject(model, None, mask, None, "fp32")
    return {
        "llama_cpp": theirs,
        "file": round(ours, 4),
        "model": round(second_halves(masked, tokens, window=window, windows=windows), 4),
        "apart": round(theirs / ours - 1, 6),
        "window": window,
        "windows": windows,
        "file_mib": round(file.stat().st_size / 2**20, 1),
    }


def llama_perplexity(program: Path, file: Path, text: Path, *, window: int, windows: int) -> float:
    """What llama.cpp's program says of a file.

    Raises:
        LlamaPerplexityError: it failed; the message has the end of what it said.
    """
    arguments = ["-m", file, "-f", text, "-c", window, "-b", window, "--chunks", windows]
    command = [str(program.resolve()), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    said = done.stdout + done.stderr
    found = _ESTIMATE.search(said)
    if done.returncode or found is None:
        end = " ".join(said.split())[-_SHOWN:]
        raise LlamaPerplexityError(f"{program} ended with {done.returncode}: {end}")
    return float(found[1])


def second_halves(subject: Subject, tokens: Sequence[int], *, window: int, windows: int) -> float:
    """Perplexity of the tokens behind the middle of every window, as llama.cpp counts it."""
    # Of `window` tokens those from number window / 2 + 1 on are predicted and counted.
    skipped = window // 2
    total = count = 0.0
    for start in range(0, windows * window, window):
        scores = subject.token_scores(tokens[start : start + window])[skipped:]
        total -= sum(score.logprob for score in scores)
        count += len(scores)
    return math.exp(total / count)


def export_page(result: ResultData) -> str:
    """The page of export.json."""
    return page("Exported files in llama.cpp", _ABOUT, result, export_table(result["rows"]))


def export_table(rows: Sequence[ResultRow]) -> str:
    """Perplexity by type."""
    lines = [
        [
            f"`{row['type']}`",
            number(row["llama_cpp"], 5),
            number(row["file"], 5),
            percent(abs(row["apart"]), 2),
            number(row["model"], 5),
            f"{row['windows']} of {row['window']} tokens",
            number(row["file_mib"]),
        ]
        for row in rows
    ]
    head = ["type", "llama.cpp", "the file", "apart", "the model", "windows", "MiB"]
    return markdown_table(head, lines)
