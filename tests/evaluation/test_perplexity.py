"""The perplexity protocol against a straightforward loop."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from evaluation.perplexity import EvaluationError, evaluate, measure_perplexity
from maskgen.format.tokenizer import ModelTokenizer
from maskgen.prune import PruneSettings, prune
from maskgen.texts.text_sets import TextSet
from maskgen.torch_model import TorchScorer, apply_to_module, load_model
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama

TEXT = TextSet.of("sample", [SAMPLE_TEXT[:200], "A second document.", SAMPLE_TEXT[200:]])


def loop(model: torch.nn.Module, ids: list[int], window: int, count: int) -> float:
    """Token by token, each with the prefix of its own window as its only context."""
    total, tokens = 0.0, 0
    for start in range(0, count * window, window):
        for end in range(start + 1, start + window):
            with torch.no_grad():
                logits = model(torch.tensor([ids[start:end]])).logits[0, -1]
            total -= float(torch.log_softmax(logits.double(), dim=-1)[ids[end]])
            tokens += 1
    return math.exp(total / tokens)


@pytest.mark.parametrize("bos", [False, True])
def test_perplexity_is_what_the_plain_loop_gives(tmp_path: Path, bos: bool) -> None:
    directory = make_tiny_llama(tmp_path / "model", bos=bos)
    model, tokenizer = load_model(directory, "fp32"), ModelTokenizer(directory)
    ids = tokenizer.encode("\n\n".join(TEXT.texts))
    values = []
    for windows in (None, 3):
        result = evaluate(
            TorchScorer(model),
            tokenizer.encode,
            TEXT,
            model="tiny",
            mask=None,
            dtype="fp32",
            bos_token_id=tokenizer.bos_token_id,
            window=16,
            windows=windows,
        )
        count = windows or len(ids) // 16
        assert result.perplexity == pytest.approx(loop(model, ids, 16, count), rel=1e-4)
        assert result.tokens == count * 15
        assert result.bos is bos
        values.append(result)
    assert values[0].subset == f"all {len(ids) // 16} windows"
    assert values[1].subset == f"first 3 of {len(ids) // 16} windows"
    fields = {"perplexity", "tokens", "window", "dtype", "model", "mask", "data_digest"}
    assert fields < values[0].as_json().keys()
    assert values[0].data_digest == TEXT.digest


def test_a_mask_changes_the_perplexity(tmp_path: Path) -> None:
    directory = make_tiny_llama(tmp_path / "model")
    model, tokenizer = load_model(directory, "fp32"), ModelTokenizer(directory)
    ids = tokenizer.encode(SAMPLE_TEXT)
    dense = measure_perplexity(TorchScorer(model), ids, window=64)[0]
    apply_to_module(model, prune(directory, None, PruneSettings("magnitude")).mask)
    masked = measure_perplexity(TorchScorer(model), ids, window=64)[0]
    assert masked != pytest.approx(dense, rel=1e-3)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    seen = []

    def uniform(tokens: list[int]) -> float:
        return -(len(tokens) - 1) * math.log(50)

    value, count, available = measure_perplexity(
        uniform,
        range(103),
        window=10,
        progress=lambda done, total, so_far: seen.append((done, total, so_far)),
    )
    assert (value, count, available) == (pytest.approx(50), 10, 10)
    assert seen[-1] == (10, 10, pytest.approx(50))


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (5, {"window": 10}, "5 tokens, less than one window of 10"),
        (50, {"window": 1}, "predicts nothing"),
        (50, {"window": 10, "windows": 6}, "1 to 5"),
        (50, {"window": 10, "windows": 0}, "1 to 5"),
    ],
)
def test_impossible_windows_are_refused(tokens: int, options: dict[str, int], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        measure_perplexity(lambda window: -1.0, range(tokens), **options)


@pytest.mark.parametrize("score", [float("nan"), float("-inf"), 0.5])
def test_scores_that_are_no_log_probabilities_are_refused(score: float) -> None:
    with pytest.raises(EvaluationError, match="window 0 scored"):
        measure_perplexity(lambda window: score, range(20), window=10)
