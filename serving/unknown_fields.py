"""Fields that no schema knows: refused, or logged and left out if the settings say so."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from serving.validation import NOT_IMPLEMENTED

logger = logging.getLogger("serving")

MAX_LOGGED_NAMES = 256

_left_out: ContextVar[set[str] | None] = ContextVar("left_out", default=None)


def without_unknown(given: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """An object of a body without what its schema does not know, where that is left out.

    Fields that are known to change answers stay, so that they are refused.
    """
    left_out = _left_out.get()
    unknown = given.keys() - known - NOT_IMPLEMENTED.keys()
    if left_out is None or not unknown:
        return given
    left_out |= unknown
    return {name: value for name, value in given.items() if name not in unknown}


class UnknownFieldLog:
    """Leaves unknown fields out of request bodies, and logs each name once.

    Names are what clients typed: they are cut, and no more than `MAX_LOGGED_NAMES` are logged.
    """

    def __init__(self) -> None:
        self._logged: set[str] = set()

    @contextmanager
    def leaving_out(self, route: str) -> Iterator[None]:
        """For the request that is validated inside."""
        names: set[str] = set()
        token = _left_out.set(names)
        try:
            yield
        finally:
            _left_out.reset(token)
            for name in sorted(names):
                self._log(name[:80], route)

    def _log(self, name: str, route: str) -> None:
        if name in self._logged or len(self._logged) >= MAX_LOGGED_NAMES:
            return
        self._logged.add(name)
        logger.warning("ignoring the unknown field %r of requests to %s", name, route)
        if len(self._logged) == MAX_LOGGED_NAMES:
            logger.warning("further unknown fields are ignored without a word")
