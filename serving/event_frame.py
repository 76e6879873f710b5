"""Events of a stream whose choice is new and whose other fields are always the same."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel
from pydantic_core import to_json

_NO_CHOICES = b'"choices":[]'


class EventFrame:
    """Encodes what all events of a stream have in common once.

    Making and dumping two models for every token takes longer than everything else that the server
    does with it.

    Args:
        event: one without choices.

    Raises:
        ValueError: it has choices.
    """

    def __init__(self, event: BaseModel) -> None:
        before, empty, after = dump(event).partition(_NO_CHOICES)
        if not empty:
            raise ValueError("an event without choices is needed")
        self._before = before + _NO_CHOICES[:-1]
        self._after = b"]" + after

    def event(self, choice: Mapping[str, object]) -> bytes:
        """The event of one choice, as JSON.

        Args:
            choice: its fields: text and whole numbers, nothing that JSON could not hold.
        """
        return self._before + to_json(choice) + self._after


def dump(event: BaseModel) -> bytes:
    """An event as JSON, without what was never set."""
    return event.model_dump_json(exclude_unset=True).encode()
