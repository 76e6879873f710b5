"""Pure ASGI middleware: request ids, the last resort for errors, compression, limits on bodies."""

from __future__ import annotations

import asyncio
import logging
import re
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.gzip import GZipMiddleware, IdentityResponder
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import METHODS, ApiError, internal_error
from serving.metrics import Metrics

logger = logging.getLogger("serving")

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_WEIGHT_ZERO = re.compile(r"\s*q\s*=\s*0(\.0{0,3})?\s*", re.IGNORECASE)


async def answer_failure(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the plain 500."""
    await internal_error().response()(scope, receive, send)


class RequestContext:
    """Gives every response an `x-request-id`, counts it, and turns a crash into a plain 500.

    The outermost layer, so that no answer leaves without an id. An id that the client sent is kept
    if it is short and harmless, since it goes into the log.

    Args:
        app: what is behind it.
        metrics: count requests.
        access_log: whether each is logged.
        failed: answers for an app that crashed, with the headers that every answer has.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, access_log: bool, failed: ASGIApp = answer_failure
    ) -> None:
        self._app = app
        self._failed = failed
        self._metrics = metrics
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            if status:
                raise
            await self._failed(scope, receive, send_with_id)
        finally:
            self._record(scope, status, request_id)

    def _record(self, scope: Scope, status: int, request_id: str) -> None:
        # Labels are the route's own path and known methods: what a client types must not become
        # a time series.
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.http_requests.labels(method, route, str(status)).inc()
        if self._access_log:
            logger.info("%s %s %s %s", method, route, status, request_id)


class Compression(GZipMiddleware):
    """starlette's middleware for clients that accept gzip: `gzip;q=0` says that they do not."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or accepts_gzip(Headers(scope=scope)):
            await super().__call__(scope, receive, send)
            return
        plain = IdentityResponder(
            self.app, self.minimum_size, exclude_content_types=self.exclude_content_types
        )
        await plain(scope, receive, send)


def accepts_gzip(headers: Headers) -> bool:
    """Whether a client names gzip with a weight that is not 0 (RFC 9110, 12.4.2 and 12.5.3)."""
    for item in ",".join(headers.getlist("accept-encoding")).split(","):
        coding, *parameters = item.split(";")
        if coding.strip().lower() == "gzip":
            return not any(map(_WEIGHT_ZERO.fullmatch, parameters))
    return False


class BodyLimits:
    """Refuses request bodies above `limit` bytes, declared or not, with a 413, and slow ones.

    Args:
        app: what is behind it.
        limit: bytes.
        timeout: seconds for the whole body; longer ones get a 408.
    """

    def __init__(self, app: ASGIApp, limit: int, timeout: float) -> None:
        self._app = app
        self._limit = limit
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._limit:
            await self._too_large().response()(scope, receive, send)
            return
        received, complete = 0, False
        deadline = asyncio.get_running_loop().time() + self._timeout

        async def limited_receive() -> Message:
            nonlocal received, complete
            if complete:  # what still comes is the end of the connection, whenever that is
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise self._too_slow() from None
            complete = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._too_large()
            return message

        await self._app(scope, limited_receive, send)

    def _too_slow(self) -> ApiError:
        return ApiError(
            408,
            f"the request body did not come within {self._timeout:g} s (the setting body_timeout)",
            headers={"connection": "close"},
        )

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"the request body is larger than {self._limit} bytes (the setting max_body_bytes)",
            headers={"connection": "close"},
        )
