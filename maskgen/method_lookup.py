"""Finding a method by its name, of whatever kind."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


class UnknownMethodError(ValueError):
    """No method of that name, or one of another kind."""


def find_method(methods: Mapping[str, Entry], name: str) -> Entry:
    """What a table holds under a name.

    Raises:
        UnknownMethodError: nothing; the message lists the names and suggests one.
    """
    if name in methods:
        return methods[name]
    close = difflib.get_close_matches(name, methods, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UnknownMethodError(f"there is no method {name!r}; {hint}methods: {', '.join(methods)}")
