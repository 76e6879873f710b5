"""Request bodies as JSON, before any field is looked at."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from serving.errors import ApiError, ClientGoneError, invalid
from serving.validation import Path, field_name

# JSON writes a surrogate as an escape: its bytes are no UTF-8.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class JsonRequest(Request):
    """A request whose JSON is UTF-8 and whole text, with integers however they are written."""

    async def body(self) -> bytes:
        """The body's bytes.

        Raises:
            ApiError: 499; the client left before it had sent all of it.
        """
        try:
            return await super().body()
        except ClientDisconnect as error:
            raise ClientGoneError from error

    async def json(self) -> Any:
        """The body's value.

        Raises:
            ApiError: 400; it is not UTF-8, nested too deeply, holds a number that is none or that
                nothing here can hold, or a string with half a character, which no tokenizer and
                no answer can take.
            JSONDecodeError: it is not JSON.
        """
        if not hasattr(self, "_json"):
            self._json = _parse(await self.body())
        return self._json


def _parse(body: bytes) -> Any:
    try:
        value = json.loads(
            body.decode("utf-8-sig"),
            parse_float=_number,
            parse_int=_integer,
            parse_constant=_no_number,
        )
    except UnicodeDecodeError as error:
        raise _invalid_json(f"byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise _invalid_json("it is nested too deeply") from error
    if _SURROGATE.search(body):
        _check_characters(value)
    return value


def _number(text: str) -> float:
    """JSON has one kind of number: 121.0 is the integer 121."""
    value = float(text)
    if math.isinf(value):
        raise _too_large(text)
    return int(value) if value.is_integer() and abs(value) < 2**63 else value


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:  # Python takes thousands of digits and no more
        raise _too_large(text) from error


def _no_number(text: str) -> NoReturn:
    """Python's parser takes three words that JSON does not have; an open type would keep them."""
    raise _invalid_json(f"{text} is no number")


def _too_large(text: str) -> ApiError:
    return _invalid_json(f"the number {text[:20]}{'...' if len(text) > 20 else ''} is too large")


def _invalid_json(reason: str) -> ApiError:
    return invalid(f"the body is not valid JSON: {reason}", None, "invalid_json")


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
