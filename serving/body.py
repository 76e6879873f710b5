"""Request bodies as JSON, before any field is looked at."""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.requests import Request

from serving.errors import invalid
from serving.validation import Path, field_name

# JSON writes a surrogate as an escape: its bytes are no UTF-8.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class JsonRequest(Request):
    """A request whose JSON is UTF-8 and whole text, with integers however they are written."""

    async def json(self) -> Any:
        """The body's value.

        Raises:
            ApiError: 400; it is not UTF-8, nested too deeply, or a string in it holds half a
                character, which no tokenizer and no answer can take.
            JSONDecodeError: it is not JSON.
        """
        if not hasattr(self, "_json"):
            self._json = _parse(await self.body())
        return self._json


def _parse(body: bytes) -> Any:
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_float=_number)
    except UnicodeDecodeError as error:
        raise invalid(
            f"the body is not valid JSON: byte {error.start} is not UTF-8", None, "invalid_json"
        ) from error
    except RecursionError as error:
        raise invalid(
            "the body is not valid JSON: it is nested too deeply", None, "invalid_json"
        ) from error
    if _SURROGATE.search(body):
        _check_characters(value)
    return value


def _number(text: str) -> float:
    """JSON has one kind of number: 121.0 is the integer 121."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**63 else value


def _check_characters(body: Any) -> None:
    """Raise a 400 that names the first string in `body` that holds half a surrogate pair."""
    rest: list[tuple[Path, Any]] = [((), body)]
    while rest:
        path, value = rest.pop()
        if isinstance(value, str):
            _check_string(path, value)
        elif isinstance(value, list):
            rest += [((*path, index), item) for index, item in enumerate(value)][::-1]
        elif isinstance(value, dict):
            for key in value:
                _check_string(path, key)
            rest += [((*path, key), item) for key, item in value.items()][::-1]


def _check_string(path: Path, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        param = field_name(path)
        raise invalid(
            f"{param or 'the body'}: character {error.start} is {text[error.start]!r}, a lone"
            " surrogate (half a character); send both halves or leave it out",
            param,
        ) from error
