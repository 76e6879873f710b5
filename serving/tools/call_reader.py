"""Reads one call, `{"name": ..., "arguments": {...}}`, character by character.

A JSON reader that needs the whole text could not say what the arguments are so far, as they were
written.
"""

from __future__ import annotations

import json
from typing import Any, Literal

_SPACE = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")
_Phase = Literal["start", "key", "colon", "value", "done", "failed"]


class CallReader:
    """What is known of a call so far.

    Attributes:
        raw: all that was read.
        name: of the function, once it is known.
        arguments: JSON text, as far as it was read.
    """

    def __init__(self) -> None:
        self.raw = ""
        self.name: str | None = None
        self.arguments = ""
        self._phase: _Phase = "start"
        self._key = ""
        self._value = ""
        self._depth = 0
        self._quoted = self._escaped = False

    @property
    def done(self) -> bool:
        """Whether the call is complete."""
        return self._phase == "done"

    @property
    def failed(self) -> bool:
        """Whether this is no call."""
        return self._phase == "failed"

    def push(self, char: str) -> None:
        """Read one more character."""
        self.raw += char
        match self._phase:
            case "start":
                self._phase = "key" if char == "{" else "failed"
            case "key":
                self._read_key(char)
            case "colon" if char == ":":
                self._phase = "value"
            case "colon" if char not in _SPACE:
                self._phase = "failed"
            case "value":
                self._read_value(char)

    def _read_key(self, char: str) -> None:
        if self._value or char == '"':
            if self._advance(char):
                self._key, self._value = str(_decoded(self._value)), ""
                self._phase = "colon"
        elif char == "}":
            self._phase = "done" if self.name else "failed"
        elif char not in (*_SPACE, ","):
            self._phase = "failed"

    def _read_value(self, char: str) -> None:
        if not self._value and char in _SPACE:
            return
        plain = not (self._depth or self._quoted)
        if plain and self._value and char in ",}":  # the end of a number or a word
            self._end_value()
            self._phase = "key"
            self._read_key(char)
            return
        complete = self._advance(char)
        if self._key in _ARGUMENTS and self._value.startswith("{"):
            self.arguments += char
        if complete:
            self._end_value()
            self._phase = "failed" if self._key == "name" and not self.name else "key"

    def _advance(self, char: str) -> bool:
        """Add a character to the value; whether a string, list or object ends with it."""
        self._value += char
        if self._quoted:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._quoted = False
                return self._depth == 0
            return False
        if char == '"':
            self._quoted = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            return self._depth == 0
        return False

    def _end_value(self) -> None:
        value, self._value = self._value, ""
        if self._key == "name":
            decoded = _decoded(value)
            self.name = decoded if isinstance(decoded, str) and decoded else None
        elif self._key in _ARGUMENTS and not value.startswith("{"):
            # Some models write the arguments as a string that holds JSON.
            decoded = _decoded(value)
            self.arguments = decoded if isinstance(decoded, str) else value


class NamedCallReader:
    """Reads `name{...}` and `name[ARGS]{...}`; the same attributes as `CallReader`."""

    def __init__(self) -> None:
        self.raw = ""
        self.name: str | None = None
        self.arguments = ""
        self._object = CallReader()
        self._object._phase = "value"
        self._object._key = "arguments"
        self.done = self.failed = False

    def push(self, char: str) -> None:
        """Read one more character."""
        self.raw += char
        if self.name is None:
            if char == "{":
                self.name = self.raw[:-1].partition("[")[0].strip() or None
                self.failed = self.name is None
            if self.name is None:
                return
        self._object.push(char)
        self.arguments = self._object.arguments
        self.done = self._object._phase == "key"


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
