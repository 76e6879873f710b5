"""Structured output: a request's constraint as a token mask per step, through llguidance."""

from __future__ import annotations

import json
import threading
from functools import lru_cache

import llguidance
import numpy as np
import numpy.typing as npt

from engines.decoding.json_schema import prepared_schema
from engines.errors import InvalidRequestError
from engines.sampling import StructuredOutput
from engines.text import TextCodec

_FORMATS = {
    "json_schema": "json_schema",
    "json_object": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "lark": "lark",
}
MAX_CONSTRAINT_CHARS = 64 << 10
"""Most characters of a constraint's source."""

_MAX_LEXER_STATES = 50_000
"""A state takes 1 to 2 kB, and every running sequence has its own."""

_KEPT = 32
"""Compiled constraints that are kept: checked before a request is admitted, used when it runs."""


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
            raise _refused("cannot go on", self._matcher.get_error())


class ConstraintCompiler:
    """Compiles constraints for one tokenizer; the tokenizer's table is made at first use."""

    def __init__(self, codec: TextCodec, vocab_size: int) -> None:
        self._codec = codec
        self._vocab_size = max(vocab_size, codec.vocab_size)
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._lock = threading.Lock()
        self._compiled = lru_cache(maxsize=_KEPT)(self._compile)

    def compile(self, spec: StructuredOutput) -> Constraint:
        """A fresh constraint at its start; may take a second, so call it off the event loop.

        Raises:
            InvalidRequestError: the constraint is malformed, matches nothing, or is beyond the
                library's limits or ours.
        """
        return Constraint(self._compiled(spec).deep_copy())

    def _compile(self, spec: StructuredOutput) -> llguidance.LLMatcher:
        if len(spec.value) > MAX_CONSTRAINT_CHARS:
            raise InvalidRequestError(
                f"the structured output has {len(spec.value)} characters,"
                f" at most {MAX_CONSTRAINT_CHARS} are allowed",
                param="structured",
            )
        matcher = llguidance.LLMatcher(
            self._table(),
            _grammar(spec),
            log_level=0,
            limits=llguidance.LLParserLimits(
                max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False
            ),
        )
        if not matcher.is_error():
            # Some limits, and that nothing can match, show only in the first step.
            matcher.compute_bitmask()
        if matcher.is_error():
            raise _refused("cannot be compiled", matcher.get_error())
        return matcher

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


def _grammar(spec: StructuredOutput) -> str:
    source = '{"type": "object"}' if spec.kind == "json_object" else spec.value
    if spec.kind == "choice":
        _check_choices(source)
    if spec.kind in ("json_schema", "json_object"):
        source = prepared_schema(source, any_whitespace=spec.any_whitespace)
    try:
        grammar: str = llguidance.grammar_from(_FORMATS[spec.kind], source)
    except (ValueError, TypeError) as error:
        raise _refused("cannot be compiled", str(error)) from error
    return grammar


def _refused(what: str, reason: str) -> InvalidRequestError:
    # The library draws its errors over several lines.
    line = " ".join(reason.replace("<non-verbose/>", "").split())
    return InvalidRequestError(f"the structured output {what}: {line[:300]}", param="structured")


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
