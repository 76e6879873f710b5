"""API keys. Every route is a guarded one, except the probes."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Coroutine, Sequence
from hashlib import sha256
from typing import Any, Literal

from fastapi.routing import APIRoute
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import Response

from serving.body import JsonRequest
from serving.errors import ApiError
from serving.unknown_fields import UnknownFieldLog

Level = Literal["api", "admin"]
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class KeyRing:
    """The keys of one level, kept as digests.

    A level without keys lets everybody in (`api`) or nobody (`admin`).
    """

    def __init__(self, level: Level, keys: Sequence[SecretStr]) -> None:
        self._open = level == "api" and not keys
        self._digests = [_digest(key.get_secret_value()) for key in keys]

    def check(self, authorization: str | None) -> None:
        """Raise a 401 unless the header carries one of the keys."""
        if self._open:
            return
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise _unauthorized("an API key is needed: send Authorization: Bearer KEY")
        given = _digest(token.strip())
        # Every key is compared, each in constant time: the time taken says nothing.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if not any(matches):
            raise _unauthorized("this API key is not valid here")


def _digest(key: str) -> bytes:
    return sha256(key.encode()).digest()


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, headers={"www-authenticate": "Bearer"})


class ApiRoute(APIRoute):
    """A route that needs an API key, checked before the body is read.

    The check hangs on the route that was matched and not on the path, so that no spelling of a
    path can pass it.
    """

    level: Level = "api"

    def get_route_handler(self) -> Handler:
        """The handler, behind the key check."""
        handler = super().get_route_handler()
        level = self.level

        async def guarded(request: Request) -> Response:
            ring: KeyRing = request.app.state.keys[level]
            ring.check(request.headers.get("authorization"))
            checked = JsonRequest(request.scope, request.receive)
            unknown_fields: UnknownFieldLog | None = request.app.state.unknown_fields
            if unknown_fields is None:
                return await handler(checked)
            with unknown_fields.leaving_out(self.path):
                return await handler(checked)

        return guarded


class AdminRoute(ApiRoute):
    """A route that needs an admin key."""

    level: Level = "admin"
