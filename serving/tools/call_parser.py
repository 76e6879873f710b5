"""Splits an answer into its text and its calls, piece by piece as it is generated."""

from __future__ import annotations

import json
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
    """What is new of an answer: text and pieces of calls, in the order of the answer."""

    parts: list[str | CallPiece] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text alone."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def calls(self) -> list[CallPiece]:
        """The calls alone."""
        return [part for part in self.parts if isinstance(part, CallPiece)]


def is_whole(arguments: str) -> bool:
    """Whether arguments are JSON: not cut off by a limit or a stop string, nor broken off."""
    try:
        json.loads(arguments)
    except ValueError:
        return False
    except RecursionError:  # beyond Python's reader, not beyond others
        return True
    return True


class CallParser:
    """Reads one answer; what comes of it does not depend on how the answer is cut into pieces.

    What looks like a call and is none is text, to the letter. A call begins when its function is
    known and its arguments begin, or it ends (see `CallReader`). Then it goes out and cannot be
    taken back: if it breaks off, it keeps the arguments that were read, and the rest is text.

    Space around calls belongs to neither, and no more do commas and the like between them. What
    parts the text before a call from the text behind it is the space that follows the call.

    Args:
        form: how the model writes calls.
        names: of the functions that there are.
        parallel: whether there may be several calls; otherwise all but the first are dropped, and
            so is what might have become one when the answer ended.
    """

    def __init__(self, form: CallFormat, names: Collection[str], parallel: bool) -> None:
        self._form = form
        self._names = names
        self._parallel = parallel
        self._buffer = ""
        self._state = "begin" if form.bare else "text"
        self._space = ""  # held back: dropped if a call follows
        self._raw: list[str] = []  # of what may be a call, to be given back as text if it is none
        self._reader: CallReader | None = None
        self._listed = False  # in a list of calls
        self._said = False  # there was text
        self._behind = False  # nothing but space since a call
        self.calls = 0

    def push(self, text: str) -> AnswerPiece:
        """Take more of the answer in."""
        self._buffer += text
        piece = AnswerPiece()
        steps = {
            "begin": self._begin,
            "text": self._read_text,
            "before": self._read_before,
            "call": self._read_call,
            "behind": self._read_behind,
        }
        while self._buffer and steps[self._state](piece):
            pass
        return piece

    def finish(self) -> AnswerPiece:
        """The end of the answer: what was held back."""
        piece = AnswerPiece()
        rest = "".join(self._raw) + self._buffer
        if self._state == "behind" and self._form.closing.startswith(rest):
            rest = ""  # the marker is cut off with the answer
        if rest and (self._parallel or not self.calls):
            self._say(piece, self._space + rest)
        elif not rest and not self._behind:
            piece.parts.append(self._space)
        self._buffer = self._space = ""
        self._raw.clear()
        self._state = "text"
        return piece

    def _begin(self, piece: AnswerPiece) -> bool:
        """Whether the answer is a bare call shows in its first character."""
        self._skip_space()
        if self._buffer:
            self._state = "before" if self._buffer[0] in "{[" else "text"
        return True

    def _read_text(self, piece: AnswerPiece) -> bool:
        marker = self._form.opening
        place = self._buffer.find(marker) if marker else -1
        end = place if place >= 0 else len(self._buffer) - _overlap(self._buffer, marker)
        text, self._buffer = self._space + self._buffer[:end], self._buffer[end:]
        shown = text.rstrip()
        self._space = text[len(shown) :]
        self._say(piece, shown)
        if place >= 0:
            self._open_marker()
        return place >= 0

    def _read_before(self, piece: AnswerPiece) -> bool:
        """Before a call: behind the marker, or where the answer or a list of calls begins."""
        char = self._buffer[0]
        if char == "{":
            self._open_call(CallReader(self._names))
        elif char.isspace() or (char == "[" and not self._listed):
            self._listed = self._listed or char == "["
            count = len(self._buffer) - len(self._buffer.lstrip()) or 1
            self._raw.append(self._buffer[:count])
            self._buffer = self._buffer[count:]
        elif self._form.named and not self._listed and (char.isalnum() or char in "_.:/-"):
            self._open_call(NamedCallReader(self._names))
        else:
            self._give_back(piece)
        return True

    def _read_call(self, piece: AnswerPiece) -> bool:
        reader = self._reader or CallReader(self._names)
        begun = reader.begun
        count = reader.read(self._buffer)
        if reader.begun:
            self._raw.clear()
            self._send(reader, piece, first=not begun)
        else:
            self._raw.append(self._buffer[:count])
        self._buffer = self._buffer[count:]
        if reader.begun and (reader.done or reader.failed):
            self._reader, self._state = None, "behind"
        elif reader.failed:
            self._give_back(piece)
        return True

    def _read_behind(self, piece: AnswerPiece) -> bool:
        """Behind a call: what may come between it and the next, or after the last."""
        self._skip_space()
        rest, opening, closing = self._buffer, self._form.opening, self._form.closing
        if opening and rest.startswith(opening):
            self._open_marker()
        elif closing and rest.startswith(closing):
            self._skip(len(closing))
            self._state = "text"
        elif opening.startswith(rest) or closing.startswith(rest):
            return False
        elif rest[0] in ",;" or (rest[0] == "]" and self._listed):
            self._listed = self._listed and rest[0] != "]"
            self._skip(1)
        elif rest[0] == "{" or (rest[0] == "[" and not self._listed):
            self._state = "before"
        else:
            self._state = "text"
        return True

    def _skip(self, count: int) -> None:
        """Read what belongs to the calls."""
        self._space, self._buffer = "", self._buffer[count:]

    def _skip_space(self) -> None:
        rest = self._buffer.lstrip()
        self._space += self._buffer[: len(self._buffer) - len(rest)]
        self._buffer = rest

    def _open_marker(self) -> None:
        marker = self._form.opening
        self._raw, self._buffer = [marker], self._buffer[len(marker) :]
        self._listed, self._state = False, "before"

    def _open_call(self, reader: CallReader) -> None:
        self._reader, self._state = reader, "call"

    def _send(self, reader: CallReader, piece: AnswerPiece, *, first: bool) -> None:
        if first:
            self.calls += 1
            self._space, self._behind = "", True
        new = reader.take_arguments()
        if new and (self._parallel or self.calls == 1):
            piece.parts.append(
                CallPiece(
                    self.calls - 1,
                    self._form.call_id() if first else None,
                    reader.name if first else None,
                    new,
                )
            )

    def _say(self, piece: AnswerPiece, text: str) -> None:
        """Give text, which has more than space in it if it is not empty."""
        if text:
            piece.parts.append(text.lstrip() if self._behind and not self._said else text)
            self._said, self._behind = True, False

    def _give_back(self, piece: AnswerPiece) -> None:
        """What was read is no call."""
        self._buffer, marker = "".join(self._raw) + self._buffer, self._form.opening
        self._raw.clear()
        if marker and self._buffer.startswith(marker):  # not to be taken for a call again
            self._say(piece, self._space + marker)
            self._skip(len(marker))
        self._reader, self._state, self._listed = None, "text", False


def _overlap(text: str, marker: str) -> int:
    """Length of the longest proper prefix of `marker` that ends `text`."""
    lengths = range(min(len(marker) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(marker[:length])), 0)
