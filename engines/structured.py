"""Structured output: a request's constraint as a token mask per step, through llguidance."""

from __future__ import annotations

import json
import threading

import llguidance
import numpy as np
import numpy.typing as npt

from engines.errors import InvalidRequestError
from engines.sampling import StructuredOutput
from engines.text import TextCodec

_FORMATS = {
    "json_schema": "json_schema",
    "json_object": "json_schema",
    "regex": "regex",
    "choice": "choice",
}
MAX_CONSTRAINT = 64 << 10
"""Most characters of a constraint's source."""


class Constraint:
    """The state of one constrained sequence."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self, vocab_size: int) -> npt.NDArray[np.bool_]:
        """(vocab_size,) which tokens may come next.

        Raises:
            InvalidRequestError: the constraint grew past the library's limits.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed = np.zeros(vocab_size, dtype=np.bool_)
        known = np.unpackbits(bits, bitorder="little")[:vocab_size]
        allowed[: known.size] = known
        return allowed

    def push(self, token_id: int) -> None:
        """Advance by the sampled token."""
        self._matcher.consume_token(token_id)
        self._check()

    @property
    def finished(self) -> bool:
        """Whether nothing but an end-of-sequence token may follow."""
        stopped: bool = self._matcher.is_stopped()
        return stopped

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidRequestError(
                f"the structured output cannot go on: {self._matcher.get_error()[:300]}",
                param="structured",
            )


class ConstraintCompiler:
    """Compiles constraints for one tokenizer; the tokenizer's table is made at first use."""

    def __init__(self, codec: TextCodec, vocab_size: int) -> None:
        self._codec = codec
        self._vocab_size = max(vocab_size, codec.vocab_size)
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._lock = threading.Lock()

    def compile(self, spec: StructuredOutput) -> Constraint:
        """A fresh constraint at its start; may take a second, so call it off the event loop.

        Raises:
            InvalidRequestError: the constraint is malformed or beyond the library's limits.
        """
        if len(spec.value) > MAX_CONSTRAINT:
            raise InvalidRequestError(
                f"the structured output has {len(spec.value)} characters,"
                f" at most {MAX_CONSTRAINT} are allowed",
                param="structured",
            )
        source = '{"type": "object"}' if spec.kind == "json_object" else spec.value
        if spec.kind == "choice":
            _check_choices(source)
        try:
            grammar = llguidance.grammar_from(_FORMATS[spec.kind], source)
        except ValueError as error:
            raise InvalidRequestError(
                f"the structured output is malformed: {str(error)[:300]}", param="structured"
            ) from error
        matcher = llguidance.LLMatcher(self._table(), grammar, log_level=0)
        if matcher.is_error():
            raise InvalidRequestError(
                f"the structured output is malformed: {matcher.get_error()[:300]}",
                param="structured",
            )
        return Constraint(matcher)

    def _table(self) -> llguidance.LLTokenizer:
        with self._lock:
            if self._tokenizer is None:
                eos = list(self._codec.eos_token_ids)
                if not eos:
                    raise InvalidRequestError(
                        "structured output needs a tokenizer with an end-of-sequence token",
                        param="structured",
                    )
                self._tokenizer = llguidance.LLTokenizer(
                    self._codec.tokenizer.to_str(), n_vocab=self._vocab_size, eos_token=eos
                )
            return self._tokenizer


def _check_choices(source: str) -> None:
    try:
        choices = json.loads(source)
    except ValueError:
        choices = None
    if not (isinstance(choices, list) and choices and all(isinstance(c, str) for c in choices)):
        raise InvalidRequestError(
            "a choice constraint must be a JSON list of strings that is not empty",
            param="structured",
        )
