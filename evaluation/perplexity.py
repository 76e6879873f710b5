"""Perplexity by the standard protocol.

The documents are joined by blank lines and tokenised once, so that a BOS token, if the tokenizer
adds one, stands only before the first window. The tokens are cut into windows that do not overlap;
every window is scored by itself from its first token on, and the rest after the last full window
is dropped. The perplexity is exp of the mean negative log-likelihood of all predicted tokens
(window - 1 of each window). This is what the scripts of GPTQ, SparseGPT, Wanda and MaskLLM compute.

What scores a window is a callable, so that the same protocol serves a model in torch, an engine,
and a server that returns prompt log-probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from maskgen.texts.text_sets import TextSet

WINDOW = 2048
SEPARATOR = "\n\n"

Scorer = Callable[[Sequence[int]], float]
"""Sum over t >= 1 of log p(token t | tokens before it), natural logarithm, for one window."""

WindowProgress = Callable[[int, int, float], None]
"""Called after every window with (windows done, windows in all, perplexity so far)."""


class EvaluationError(ValueError):
    """The text does not fill a window, or the scorer gave something that is no log-probability."""


@dataclass(frozen=True, slots=True)
class Perplexity:
    """A measured perplexity and what it was measured on.

    Attributes:
        perplexity: exp of the mean negative log-likelihood.
        tokens: predicted tokens.
        window: tokens in a window.
        windows: windows scored.
        windows_available: windows that the text fills; more than `windows` means that this is a
            subset.
        bos: whether the first window begins with a BOS token.
        dtype: number type of the computation.
        model: the model's name.
        mask: name or digest of the mask, None for the dense model.
        data: the data argument.
        data_digest: digest of the texts.
    """

    perplexity: float
    tokens: int
    window: int
    windows: int
    windows_available: int
    bos: bool
    dtype: str
    model: str
    mask: str | None
    data: str
    data_digest: str

    @property
    def subset(self) -> str:
        """`all N windows`, or which of them."""
        if self.windows == self.windows_available:
            return f"all {self.windows} windows"
        return f"first {self.windows} of {self.windows_available} windows"

    def as_json(self) -> dict[str, Any]:
        """The object that `twofour eval --json` prints."""
        return {**asdict(self), "subset": self.subset}


def joined_tokens(encode: Callable[[str], Sequence[int]], texts: TextSet) -> Sequence[int]:
    """Token ids of all documents joined by blank lines."""
    return encode(SEPARATOR.join(texts.texts))


def measure_perplexity(
    score: Scorer,
    tokens: Sequence[int],
    *,
    window: int = WINDOW,
    windows: int | None = None,
    progress: WindowProgress = lambda done, count, value: None,
) -> tuple[float, int, int]:
    """Perplexity of the first `windows` windows of a token sequence.

    Args:
        score: see `Scorer`.
        tokens: the whole text.
        window: tokens in a window, at least 2.
        windows: how many to score; None for all.
        progress: see `WindowProgress`.

    Returns:
        (perplexity, windows scored, windows available).

    Raises:
        EvaluationError: the text is too short, more windows are asked for than there are, or a
            score is not a finite number at most 0.
    """
    if window < 2:
        raise EvaluationError(f"a window of {window} tokens predicts nothing; use at least 2")
    available = len(tokens) // window
    if available == 0:
        raise EvaluationError(
            f"the text has {len(tokens)} tokens, less than one window of {window}; "
            "give more text or a smaller window"
        )
    count = available if windows is None else windows
    if not 1 <= count <= available:
        raise EvaluationError(f"{count} windows were asked for, the text has 1 to {available}")
    total = 0.0
    for index in range(count):
        score_sum = score(tokens[index * window : (index + 1) * window])
        if not math.isfinite(score_sum) or score_sum > 0:
            raise EvaluationError(f"window {index} scored {score_sum}, no log-probability")
        total += score_sum
        progress(index + 1, count, math.exp(-total / ((index + 1) * (window - 1))))
    return math.exp(-total / (count * (window - 1))), count, available


def evaluate(
    score: Scorer,
    encode: Callable[[str], Sequence[int]],
    texts: TextSet,
    *,
    model: str,
    mask: str | None,
    dtype: str,
    bos_token_id: int | None,
    window: int = WINDOW,
    windows: int | None = None,
    progress: WindowProgress = lambda done, count, value: None,
) -> Perplexity:
    """`measure_perplexity` on texts, with everything that makes the number comparable.

    Raises:
        EvaluationError: see `measure_perplexity`.
    """
    tokens = joined_tokens(encode, texts)
    value, count, available = measure_perplexity(
        score, tokens, window=window, windows=windows, progress=progress
    )
    return Perplexity(
        perplexity=value,
        tokens=count * (window - 1),
        window=window,
        windows=count,
        windows_available=available,
        bos=bos_token_id is not None and tokens[0] == bos_token_id,
        dtype=dtype,
        model=model,
        mask=mask,
        data=texts.name,
        data_digest=texts.digest,
    )
