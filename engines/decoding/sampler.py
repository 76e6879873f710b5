"""From weight logits to tokens, as vLLM's sampler defines it.

Order of operations: allowed tokens (structured output), `min_tokens`, logit bias, penalties; then
arg-max, or temperature, min-p, top-k, top-p and one draw. Log-probabilities are of the unmodified
logits. A draw uses one number of the sequence's own generator, so what a sequence samples does not
depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engines.base import TokenLogprobs
from engines.decoding.structured_output import Constraint
from engines.errors import InvalidRequestError
from engines.native import _native
from engines.sampling import SamplingParams

Logits = npt.NDArray[np.float32]
_COLDEST = float(np.finfo(np.float32).tiny)


class SequenceSampler:
    """Sampling parameters of one sequence, with the state that its sampling depends on.

    Args:
        params: parameters of one choice.
        prompt_token_ids: the prompt; repetition penalties count it.
        stop_ids: token ids that end the sequence, forbidden before `min_tokens`.
        constraint: the structured output's state, if any.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        stop_ids: frozenset[int],
        constraint: Constraint | None = None,
    ) -> None:
        self.params = params
        self.constraint = constraint
        self.generated = 0
        self._stop_ids = np.fromiter(stop_ids, dtype=np.int64)
        self._counts: dict[int, int] = {}
        self._penalised = bool(
            params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0
        )
        self._prompt_ids = np.unique(np.asarray(prompt_token_ids, dtype=np.int64))
        # Philox is counter-based: its output depends on the key and the number of draws alone.
        seed = None if params.seed is None else params.seed & (2**64 - 1)
        self._rng = None if params.greedy else np.random.Generator(np.random.Philox(seed))
        bias = params.logit_bias
        self._bias_ids = np.fromiter(bias.keys(), dtype=np.int64, count=len(bias))
        self._bias = np.fromiter(bias.values(), dtype=np.float32, count=len(bias))

    @property
    def plain_greedy(self) -> bool:
        """Whether the next token is just the arg-max of the logits."""
        return self.params.greedy and not self._adjusts and self.params.logprobs is None

    @property
    def _adjusts(self) -> bool:
        return (
            self._penalised
            or self.constraint is not None
            or self._bias_ids.size > 0
            or self.generated < self.params.min_tokens
        )

    def choose(self, logits: Logits) -> int:
        """Sample from (vocab,) logits, which stay unchanged; then call `push`."""
        if self._adjusts:
            logits = logits.copy()
            self._adjust(logits)
        best = int(np.argmax(logits))
        if logits[best] == -np.inf:
            raise InvalidRequestError(
                "no token may follow: min_tokens, logit_bias and structured output forbid all"
            )
        if self._rng is None or logits[best] == np.inf:  # penalties can overflow
            return best
        return draw(logits, self.params, float(self._rng.random()))

    def push(self, token_id: int) -> None:
        """Record the token that the sequence goes on with."""
        self.generated += 1
        if self._penalised:
            self._counts[token_id] = self._counts.get(token_id, 0) + 1
        if self.constraint is not None:
            self.constraint.push(token_id)

    def _adjust(self, logits: Logits) -> None:
        if self.constraint is not None:
            logits[~self.constraint.allowed(logits.size)] = -np.inf
        if self.generated < self.params.min_tokens:
            logits[self._stop_ids] = -np.inf
        if self._bias_ids.size:
            logits[self._bias_ids] += self._bias
        if self._penalised:
            self._penalise(logits)

    def _penalise(self, logits: Logits) -> None:
        params = self.params
        seen = np.fromiter(self._counts.keys(), dtype=np.int64, count=len(self._counts))
        counts = np.fromiter(self._counts.values(), dtype=np.float32, count=len(self._counts))
        if params.repetition_penalty != 1.0:
            ids = np.union1d(self._prompt_ids, seen)
            values = logits[ids]
            penalty = np.float32(params.repetition_penalty)
            with np.errstate(over="ignore"):  # a token may become infinitely likely
                logits[ids] = np.where(values > 0, values / penalty, values * penalty)
        if seen.size:
            logits[seen] -= np.float32(params.frequency_penalty) * counts
            logits[seen] -= np.float32(params.presence_penalty)


def draw(logits: Logits, params: SamplingParams, uniform: float) -> int:
    """The token at quantile `uniform` (in [0, 1)) of the filtered distribution.

    Temperature, min-p, top-k and top-p apply in this order, each to what the one before left;
    at least the likeliest token stays. Tokens of equal probability count in order of their id.
    """
    return _native.draw(
        np.ascontiguousarray(logits),
        max(params.temperature, _COLDEST),
        min(params.top_k, logits.size),
        params.top_p,
        params.min_p,
        uniform,
    )


def logprobs_of(logits: Logits, token_id: int, alternatives: int) -> TokenLogprobs:
    """Log-probability and rank of `token_id` under (vocab,) logits, with the likeliest ones."""
    top = logits.max()
    log_total = float(top) + float(np.log(np.exp(logits - top).sum(dtype=np.float64)))
    best: tuple[tuple[int, float], ...] = ()
    if alternatives:
        count = min(alternatives, logits.size)
        head = np.sort(np.argpartition(-logits, count - 1)[:count])
        head = head[np.argsort(-logits[head], kind="stable")]
        best = tuple((int(i), float(logits[i]) - log_total) for i in head)
    chosen = logits[token_id]
    rank = int(np.count_nonzero(logits > chosen)) + 1
    return TokenLogprobs(token_id, float(chosen) - log_total, rank, best)


@dataclass(frozen=True, slots=True)
class Sampled:
    """One sampled token, or what kept it from being sampled.

    Attributes:
        token_id: -1 with an error.
        logprobs: where they were asked for.
        error: what went wrong.
        invalid: whether the request itself is at fault.
    """

    token_id: int
    logprobs: TokenLogprobs | None = None
    error: str | None = None
    invalid: bool = False


def sample(logits: Logits, samplers: Sequence[SequenceSampler]) -> list[Sampled]:
    """Sample one token for each row and advance its sampler.

    Args:
        logits: (rows, vocab) weight logits.
        samplers: one per row.

    A row that cannot be sampled (its logits are not finite, its constraint broke down) gets
    `error`, and the others go on.
    """
    best = np.argmax(logits, axis=1)
    return [
        _sample_row(logits[row], int(best[row]), sampler) for row, sampler in enumerate(samplers)
    ]


def _sample_row(logits: Logits, best: int, sampler: SequenceSampler) -> Sampled:
    # NaN wins an arg-max, and an infinite one cannot be normalised.
    if not np.isfinite(logits[best]):
        return Sampled(-1, error="the model's logits are not finite")
    try:
        token = best if sampler.plain_greedy else sampler.choose(logits)
        alternatives = sampler.params.logprobs
        logprobs = None if alternatives is None else logprobs_of(logits, token, alternatives)
        sampler.push(token)
    except Exception as error:
        invalid = isinstance(error, InvalidRequestError)
        return Sampled(-1, error=str(error) or type(error).__name__, invalid=invalid)
    return Sampled(token, logprobs)
