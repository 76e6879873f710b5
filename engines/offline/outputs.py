"""What offline generation returns, with the names of vLLM's outputs."""

from __future__ import annotations

from dataclasses import dataclass

from engines.base import FinishReason, TokenLogprobs


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One generated answer.

    Attributes:
        index: which of the prompt's `n` answers.
        text: the answer, without the stop string unless that was asked for.
        token_ids: its token ids.
        logprobs: one per token when `SamplingParams.logprobs` is set, else None.
        finish_reason: `stop`, `length`, or `abort` when the engine was closed meanwhile.
        stop_reason: the stop string or token id that ended it; None for the model's own end.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    finish_reason: FinishReason
    stop_reason: str | int | None

    @property
    def cumulative_logprob(self) -> float | None:
        """Sum of the tokens' log-probabilities; None when they were not asked for."""
        return None if self.logprobs is None else sum(entry.logprob for entry in self.logprobs)


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """The answers to one prompt.

    Attributes:
        prompt: its text; None when token ids were given.
        prompt_token_ids: its token ids.
        mask: name of the mask that answered; None for the dense model.
        outputs: `SamplingParams.n` answers, by index.
        prompt_logprobs: one per prompt token when asked for; the first token has none.
        cached_tokens: prompt tokens that came out of the prefix cache.
    """

    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    mask: str | None
    outputs: tuple[CompletionOutput, ...]
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None
    cached_tokens: int
