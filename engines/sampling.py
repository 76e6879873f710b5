"""What a request asks of the sampler, with vLLM's names, defaults and limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from engines.errors import InvalidRequestError

MAX_LOGPROBS = 20
MAX_STOPS = 16
_NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


@dataclass(frozen=True, slots=True)
class StructuredOutput:
    """A constraint on the generated text.

    Attributes:
        kind: `json_schema` (value: the schema as JSON text), `json_object` (value unused),
            `regex`, `choice` (value: a JSON list of strings), or `lark` (a grammar in llguidance's
            dialect, https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).
        value: the constraint's source text.
        any_whitespace: JSON may be laid out in any way. A weak model then tends to write line
            breaks until its tokens are used up; without it, JSON is on one line.
    """

    kind: Literal["json_schema", "json_object", "regex", "choice", "lark"]
    value: str = ""
    any_whitespace: bool = False


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters of one request, as vLLM's `SamplingParams` defines them.

    `temperature == 0` is greedy. `top_k <= 0` and `top_p == 1` switch the filter off. `logprobs`
    and `prompt_logprobs` say how many alternatives to report beside the chosen token (None: no
    log-probs, 0: the chosen token's only); they are of the model's distribution, before temperature
    and filters. `max_tokens=None` means as many as the context allows. 0 only scores the prompt,
    which may then fill the whole context. `stop` is one string or several; it and
    `stop_token_ids` are tuples once they are here.

    Raises:
        InvalidRequestError: a value is out of range or of the wrong type; `param` names it.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    structured: StructuredOutput | None = None

    def __post_init__(self) -> None:
        self._check("stop", isinstance(self.stop, Sequence), "a string or several")
        self._check("stop_token_ids", isinstance(self.stop_token_ids, Sequence), "token ids")
        constraint = self.structured is None or isinstance(self.structured, StructuredOutput)
        self._check("structured", constraint, "a StructuredOutput or None")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        for name in ("n", "top_k", "min_tokens"):
            self._check(name, _is_integer(getattr(self, name)), "an integer")
        for name in ("seed", "max_tokens", "logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            self._check(name, value is None or _is_integer(value), "an integer or None")
        for name in _NUMBERS:
            self._check(name, isinstance(getattr(self, name), (int, float)), "a number")
        self._check("n", 1 <= self.n <= 128, "from 1 to 128")
        self._check("temperature", 0.0 <= self.temperature <= 100.0, "from 0 to 100")
        self._check("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1")
        self._check("top_k", self.top_k >= -1, "-1 or 0 (off), or a positive number")
        self._check("min_p", 0.0 <= self.min_p <= 1.0, "from 0 to 1")
        self._check("presence_penalty", -2.0 <= self.presence_penalty <= 2.0, "from -2 to 2")
        self._check("frequency_penalty", -2.0 <= self.frequency_penalty <= 2.0, "from -2 to 2")
        self._check(
            "repetition_penalty", 0.0 < self.repetition_penalty <= 100.0, "above 0, at most 100"
        )
        self._check("min_tokens", self.min_tokens >= 0, "0 or more")
        self._check("max_tokens", self.max_tokens is None or self.max_tokens >= 0, "0 or more")
        if self.max_tokens is not None:
            self._check("min_tokens", self.min_tokens <= self.max_tokens, "at most max_tokens")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            self._check(
                name, value is None or 0 <= value <= MAX_LOGPROBS, f"from 0 to {MAX_LOGPROBS}"
            )
        self._check("stop", len(self.stop) <= MAX_STOPS, f"at most {MAX_STOPS} strings")
        strings = all(isinstance(text, str) and text for text in stop)
        self._check("stop", strings, "strings that are not empty")
        self._check("stop_token_ids", all(map(_is_integer, self.stop_token_ids)), "integers")
        self._check("logit_bias", all(map(_is_integer, self.logit_bias)), "keyed by integers")
        self._check(
            "logit_bias", all(-100.0 <= b <= 100.0 for b in self.logit_bias.values()), "-100 to 100"
        )

    def _check(self, name: str, ok: bool, limit: str) -> None:
        if not ok:
            raise InvalidRequestError(
                f"{name} must be {limit}, got {getattr(self, name)!r}", param=name
            )

    def for_choice(self, index: int) -> SamplingParams:
        """The parameters of choice `index` of `n`: alone, with a seed of its own."""
        seed = None if self.seed is None else self.seed + index
        return replace(self, n=1, seed=seed)

    @property
    def scores_only(self) -> bool:
        """Whether the prompt is scored and nothing is generated."""
        return self.max_tokens == 0

    @property
    def greedy(self) -> bool:
        """Whether the arg-max is taken instead of a draw."""
        return self.temperature == 0.0


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
