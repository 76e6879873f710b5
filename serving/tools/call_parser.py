"""Splits an answer into its text and its calls, piece by piece as it is generated."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from serving.tools.call_reader import CallReader, NamedCallReader
from serving.tools.formats import CallFormat


@dataclass
class CallPiece:
    """What is new of one call; `id` and `name` come with its first piece."""

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass
class AnswerPiece:
    """What is new of an answer."""

    text: str = ""
    calls: list[CallPiece] = field(default_factory=list)


class CallParser:
    """Reads one answer.

    What looks like a call and is none is text. Space around calls belongs to neither.

    Args:
        form: how the model writes calls.
        names: of the functions that there are.
        parallel: whether there may be several calls; otherwise all but the first are dropped.
    """

    def __init__(self, form: CallFormat, names: Collection[str], parallel: bool) -> None:
        self._form = form
        self._names = names
        self._parallel = parallel
        self._buffer = ""
        self._state = "begin" if form.bare else "text"
        self._raw = ""  # of what may be a call, to be given back as text if it is none
        self._reader: CallReader | NamedCallReader | None = None
        self._fresh = False  # no call was read since the marker
        self._sent = 0  # characters of the present call's arguments
        self.calls = 0

    def push(self, text: str) -> AnswerPiece:
        """Take more of the answer in."""
        self._buffer += text
        piece = AnswerPiece()
        steps = {
            "begin": self._begin,
            "text": self._read_text,
            "between": self._read_between,
            "call": self._read_call,
        }
        while self._buffer and steps[self._state](piece):
            pass
        return piece

    def finish(self) -> AnswerPiece:
        """The end of the answer: what was held back."""
        piece = AnswerPiece()
        if self._state == "call" and not self._started:
            piece.text = self._raw + (self._reader.raw if self._reader else "")
        elif self._state == "between" and not self.calls:
            piece.text = self._raw + self._buffer
        elif self._state in ("begin", "text") and (self._buffer.strip() or not self.calls):
            piece.text = self._buffer
        self._buffer = self._raw = ""
        self._state = "text"
        return piece

    @property
    def _started(self) -> bool:
        return self._reader is not None and self._sent >= 0

    def _begin(self, piece: AnswerPiece) -> bool:
        """Whether the answer is a bare call shows in its first character."""
        stripped = self._buffer.lstrip()
        if not stripped:
            return False
        if stripped[0] in "{[" and not self._form.opening.startswith(stripped[0]):
            self._raw = self._buffer[: len(self._buffer) - len(stripped)]
            self._buffer, self._state, self._fresh = stripped, "between", True
        else:
            self._state = "text"
        return True

    def _read_text(self, piece: AnswerPiece) -> bool:
        marker = self._form.opening
        place = self._buffer.find(marker) if marker else -1
        if place >= 0:
            piece.text += self._buffer[:place].rstrip()
            self._raw, self._buffer = marker, self._buffer[place + len(marker) :]
            self._state, self._fresh = "between", True
            return True
        held = _overlap(self._buffer, marker)
        shown = self._buffer[: len(self._buffer) - held].rstrip()
        piece.text += shown
        self._buffer = self._buffer[len(shown) :]
        return False

    def _read_between(self, piece: AnswerPiece) -> bool:
        """Between the marker and a call, or after one."""
        opening, closing = self._form.opening, self._form.closing
        if opening and not self._fresh:
            if self._buffer.startswith(opening):
                self._raw, self._buffer, self._fresh = opening, self._buffer[len(opening) :], True
                return True
            if opening.startswith(self._buffer):
                return False
        if closing and self._buffer.startswith(closing):
            self._buffer, self._raw, self._state = self._buffer[len(closing) :], "", "text"
            return True
        if closing and closing.startswith(self._buffer):
            return False
        char, rest = self._buffer[0], self._buffer[1:]
        if char == "{":
            self._open_call(CallReader())
        elif char.isspace() or char in "[],;":
            self._raw, self._buffer = self._raw + char, rest
        elif self._form.named and self._fresh and (char.isalnum() or char == "_"):
            self._open_call(NamedCallReader())
        else:
            self._give_back(piece)
        return True

    def _open_call(self, reader: CallReader | NamedCallReader) -> None:
        self._reader, self._sent, self._state = reader, -1, "call"

    def _read_call(self, piece: AnswerPiece) -> bool:
        reader = self._reader or CallReader()
        for place, char in enumerate(self._buffer):
            reader.push(char)
            if reader.failed or reader.done:
                self._buffer = self._buffer[place + 1 :]
                break
        else:
            self._buffer = ""
        unknown = self._form.bare and reader.name is not None and reader.name not in self._names
        if (reader.failed or unknown) and not self._started:
            self._raw += reader.raw
            self._give_back(piece)
            return True
        if reader.name is not None:
            self._send(reader, piece)
        if reader.done or reader.failed:
            self._raw, self._state, self._fresh = "", "between", False
            self._reader = None
        return True

    def _send(self, reader: CallReader | NamedCallReader, piece: AnswerPiece) -> None:
        first = self._sent < 0
        if first:
            self._sent = 0
            self.calls += 1
        # A call without arguments has none, which in JSON is an empty object.
        known = reader.arguments or ("{}" if reader.done else "")
        new, self._sent = known[self._sent :], len(known)
        if (new or first) and (self._parallel or self.calls == 1):
            piece.calls.append(
                CallPiece(
                    self.calls - 1,
                    self._form.call_id() if first else None,
                    reader.name if first else None,
                    new,
                )
            )

    def _give_back(self, piece: AnswerPiece) -> None:
        """What was read is no call."""
        self._buffer, self._raw = self._raw + self._buffer, ""
        skipped = self._form.opening
        if skipped and self._buffer.startswith(skipped):  # not to be taken for a call again
            piece.text += skipped
            self._buffer = self._buffer[len(skipped) :]
        self._reader, self._state = None, "text"


def _overlap(text: str, marker: str) -> int:
    """Length of the longest proper prefix of `marker` that ends `text`."""
    lengths = range(min(len(marker) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(marker[:length])), 0)
