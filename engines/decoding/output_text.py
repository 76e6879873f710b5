"""From sampled tokens to the text of one choice: decoding, stop strings, and why it ended."""

from __future__ import annotations

from dataclasses import dataclass

from engines.base import FinishReason
from engines.sampling import SamplingParams
from engines.text import TextStream


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one token adds: its text so far certain, and how the choice ended, if it did."""

    text: str
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


class ChoiceText:
    """Decodes one choice and watches for its end.

    Text that may turn out to be the start of a stop string is held back until that is decided.

    Args:
        stream: incremental decoder.
        params: parameters of the choice.
        eos_token_ids: the model's end-of-sequence tokens.
        max_tokens: most tokens to generate; the context is already taken into account.
    """

    def __init__(
        self,
        stream: TextStream,
        params: SamplingParams,
        eos_token_ids: tuple[int, ...],
        max_tokens: int,
    ) -> None:
        self._stream = stream
        self._params = params
        self._eos = () if params.ignore_eos else eos_token_ids
        self._max_tokens = max_tokens
        self._held = ""
        self._count = 0

    def push(self, token_id: int, *, constraint_finished: bool = False) -> TextDelta:
        """Add one token. `constraint_finished`: nothing may follow in the structured output."""
        self._count += 1
        by_id = token_id in self._params.stop_token_ids
        if token_id in self._eos or by_id:
            # A stopping token has no text of its own unless it is asked for.
            if by_id and self._params.include_stop_str_in_output:
                self._held += self._stream.push(token_id)
            is_eos = token_id in self._eos
            return TextDelta(self.flush(), "stop", None if is_eos else token_id)
        self._held += self._stream.push(token_id)
        stopped = self._find_stop() if self._count > self._params.min_tokens else None
        if stopped is not None:
            return stopped
        if constraint_finished:
            return TextDelta(self.flush(), "stop")
        if self._count >= self._max_tokens:
            return TextDelta(self.flush(), "length")
        return TextDelta(self._release())

    def flush(self) -> str:
        """The held text, and U+FFFD for an incomplete character; nothing more is held."""
        text, self._held = self._held + self._stream.flush(), ""
        return text

    def _find_stop(self) -> TextDelta | None:
        hits = [(self._held.find(stop), stop) for stop in self._params.stop]
        found = [(place, stop) for place, stop in hits if place >= 0]
        if not found:
            return None
        place, stop = min(found, key=lambda hit: hit[0])
        end = place + len(stop) if self._params.include_stop_str_in_output else place
        text, self._held = self._held[:end], ""
        return TextDelta(text, "stop", stop)

    def _release(self) -> str:
        """All of the held text but a tail that begins a stop string."""
        keep = max((_overlap(self._held, stop) for stop in self._params.stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that ends `text`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
