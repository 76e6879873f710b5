"""Something that `twofour eval` can measure: log-probabilities of a text's tokens, and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One token of a text, given those before it.

    Attributes:
        logprob: its log-probability, natural logarithm.
        greedy: whether no token is likelier.
    """

    logprob: float
    greedy: bool


@dataclass(frozen=True, slots=True)
class Subject:
    """Something that can score text.

    Attributes:
        token_scores: of every token of a sequence but the first.
        encode: text to token ids, special tokens added as the model's tokenizer is set to.
        model: the model's name.
        mask: the mask's name, None for dense.
        dtype: number type of the computation.
        bos_token_id: None if there is none.
        context_length: most tokens of one sequence to score, None if unknown.
    """

    token_scores: Callable[[Sequence[int]], Sequence[TokenScore]]
    encode: Callable[[str], Sequence[int]]
    model: str
    mask: str | None
    dtype: str
    bos_token_id: int | None
    context_length: int | None

    def score(self, tokens: Sequence[int]) -> float:
        """Log-probability of a sequence; a `evaluation.perplexity.Scorer`."""
        return sum(score.logprob for score in self.token_scores(tokens))


def complete_scores(scores: list[TokenScore], tokens: int) -> list[TokenScore]:
    """The scores, once every token of a sequence but the first is known to have one.

    Raises:
        ValueError: some are missing.
    """
    if len(scores) != tokens - 1:
        raise ValueError(f"{tokens} tokens came back with {len(scores)} log-probabilities")
    return scores
