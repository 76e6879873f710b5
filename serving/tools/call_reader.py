"""Reads one call, `{"name": ..., "arguments": {...}}`, character by character.

A JSON reader that needs the whole text could not say what the arguments are so far, as they were
written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, Literal

_SPACE = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")
_CLOSED_BY = {"{": "}", "[": "]"}
_HEADER = re.compile(r"[\w.:/-]{1,128}\s{0,9}(\[[\w\s\[\]-]{0,99})?")
_Phase = Literal["start", "key", "colon", "value", "done", "failed"]


class CallReader:
    """What is known of a call so far.

    A call begins once it has the name of a function that there is, and arguments, or its end.
    Before, of two values of one kind the later counts; from then on both are settled, since they
    may have gone out to the client.

    Args:
        names: of the functions that there are; what names no such function is no call.

    Attributes:
        name: of the function, once it is known.
        begun: whether this is a call, whatever follows.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.name: str | None = None
        self.begun = False
        self._names = names
        self._phase: _Phase = "start"
        self._key = ""
        self._value: list[str] = []
        self._arguments: list[str] = []
        self._taking = False  # the value is arguments that count
        self._open: list[str] = []  # what closes the lists and objects around
        self._quoted = self._escaped = False

    @property
    def done(self) -> bool:
        """Whether the call is complete."""
        return self._phase == "done"

    @property
    def failed(self) -> bool:
        """Whether this is no call, or, once it has begun, whether it is broken off."""
        return self._phase == "failed"

    def read(self, text: str) -> int:
        """Read on; how many characters belong to the call, if it is one."""
        for place, char in enumerate(text):
            self._push(char)
            if self.failed:
                return place
            if self.done:
                return place + 1
        return len(text)

    def take_arguments(self) -> str:
        """JSON text of the arguments: what came since this was last asked."""
        text = "".join(self._arguments)
        self._arguments.clear()
        return text

    def _push(self, char: str) -> None:
        match self._phase:
            case "start":
                self._read_start(char)
            case "key":
                self._read_key(char)
            case "colon" if char == ":":
                self._start_value(self._key)
            case "colon" if char not in _SPACE:
                self._phase = "failed"
            case "value":
                self._read_value(char)
        if not self.begun and self.name is not None and (self.done or self._arguments):
            self.begun = True
            # A call without arguments has none, which in JSON is an empty object.
            self._arguments = self._arguments or ["{}"]

    def _read_start(self, char: str) -> None:
        self._phase = "key" if char == "{" else "failed"

    def _read_key(self, char: str) -> None:
        if self._value or char == '"':
            if self._advance(char):
                self._key, self._phase = str(_decoded("".join(self._value))), "colon"
        elif char == "}":
            self._phase = "done" if self.name is not None else "failed"
        elif char not in (*_SPACE, ","):
            self._phase = "failed"

    def _start_value(self, key: str) -> None:
        self._key, self._value, self._phase = key, [], "value"
        self._taking = key in _ARGUMENTS and not self.begun

    def _read_value(self, char: str) -> None:
        if not self._value and char in _SPACE:
            return
        plain = not (self._open or self._quoted)
        if plain and self._value and char in ",}":  # the end of a number or a word
            self._end_value()
            if self._phase == "key":
                self._read_key(char)
            return
        if self._taking and char == "{" and not self._value:
            self._arguments = []
        complete = self._advance(char)
        if self._taking and self._value[0] == "{" and self._phase != "failed":
            self._arguments.append(char)
        if complete:
            self._end_value()

    def _advance(self, char: str) -> bool:
        """Add a character to the value; whether a string, list or object ends with it."""
        self._value.append(char)
        if self._quoted:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._quoted = False
                return not self._open
        elif char == '"':
            self._quoted = True
        elif char in _CLOSED_BY:
            self._open.append(_CLOSED_BY[char])
        elif char in _CLOSED_BY.values():
            if self._open and self._open.pop() == char:
                return not self._open
            self._phase = "failed"
        return False

    def _end_value(self) -> None:
        value = "".join(self._value)
        self._value, self._phase = [], "key"
        if value[0] in _CLOSED_BY:
            decoded = None
        elif (decoded := _decoded(value)) is None and value[0] != '"' and value.strip() != "null":
            self._phase = "failed"  # neither a number nor a word of JSON
        elif self._key == "name" and not self.begun:
            self._know(decoded)
        if self._key == "name" and self.name is None:
            self._phase = "failed"
        if self._taking and value[0] != "{" and self._phase != "failed":
            # Some models write the arguments as a string that holds JSON.
            text = (decoded if isinstance(decoded, str) else value).strip()
            if text not in ("", "null"):
                self._arguments = [text]

    def _know(self, name: object) -> None:
        """Take the name, if it is one of those that there are."""
        if isinstance(name, str) and name in self._names:
            self.name = name
        else:
            self._phase = "failed"


class NamedCallReader(CallReader):
    """Reads `name{...}` and `name[ARGS]{...}`."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(names)
        self._header = ""

    def _read_start(self, char: str) -> None:
        if char != "{":
            self._header += char
            if not _HEADER.fullmatch(self._header):
                self._phase = "failed"
            return
        self._know(self._header.partition("[")[0].strip())
        if not self.failed:
            self._start_value("arguments")
            self._read_value(char)

    def _end_value(self) -> None:
        super()._end_value()
        self._phase = "done"


def _decoded(text: str) -> Any:
    """What JSON text stands for; None, too, if it is none or cannot be sent on."""
    try:
        value = json.loads(text, strict=False)
        if isinstance(value, str):
            value.encode()  # fails for half of a surrogate pair
    except ValueError:
        return None
    return value
