"""Errors as OpenAI's clients expect them: `{"error": {message, type, param, code}}`.

All four keys are always there, and `code` always is a string. The status codes are the ones whose
exception classes and retries the official client knows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Match

from engines.errors import (
    EngineDeadError,
    EngineError,
    EngineOverloadedError,
    InvalidRequestError,
    MaskError,
    MaskMemoryError,
    PromptTooLongError,
    UnknownMaskError,
)
from serving.validation import describe_validation_error

MAX_MESSAGE_CHARS = 1000
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")

# status -> (type, default code)
_KINDS: dict[int, tuple[str, str]] = {
    400: ("invalid_request_error", "invalid_request"),
    401: ("authentication_error", "invalid_api_key"),
    403: ("permission_error", "permission_denied"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    408: ("invalid_request_error", "request_timeout"),
    409: ("conflict_error", "conflict"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    431: ("invalid_request_error", "headers_too_large"),
    499: ("client_error", "client_closed_request"),
    500: ("server_error", "internal_error"),
    503: ("service_unavailable_error", "service_unavailable"),
}


class ApiError(HTTPException):
    """An error that becomes an OpenAI error body.

    Attributes:
        param: the request field at fault, if one is.
        code: a stable word that programs can test.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers) if headers else None)
        self.param = param
        self.kind, default_code = _KINDS.get(status, ("api_error", "error"))
        self.code = code or default_code

    def body(self) -> dict[str, dict[str, str | None]]:
        """The JSON body."""
        message = self.detail
        if len(message) > MAX_MESSAGE_CHARS:
            message = message[: MAX_MESSAGE_CHARS - 3] + "..."
        return {
            "error": {
                "message": message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """The HTTP response."""
        return JSONResponse(self.body(), self.status_code, self.headers)


class ClientGoneError(ApiError):
    """The client closed the connection; nobody reads the answer."""

    def __init__(self) -> None:
        super().__init__(499, "the client closed the connection")


def invalid(message: str, param: str | None, code: str = "invalid_value") -> ApiError:
    """A 400 that names the field at fault."""
    return ApiError(400, message, param=param, code=code)


def internal_error() -> ApiError:
    """A 500 that tells nothing of what happened: that is in the log, under the request id."""
    return ApiError(500, "the server failed to handle this request; its log has the details")


def overloaded(retry_after: float, reason: str = "too many requests are waiting") -> ApiError:
    """A 429 with the time after which to try again, in whole seconds."""
    seconds = max(1, round(retry_after))
    return ApiError(
        429,
        f"{reason}; try again in {seconds} s",
        code="overloaded",
        headers={"retry-after": str(seconds)},
    )


def from_engine_error(error: EngineError, retry_after: float = 1.0) -> ApiError:
    """What an engine's error is over HTTP."""
    message = str(error)
    match error:
        case PromptTooLongError():
            return invalid(message, error.param or "prompt", "context_length_exceeded")
        case UnknownMaskError():
            return ApiError(404, message, param=error.param or "model", code="model_not_found")
        case InvalidRequestError():
            return invalid(message, error.param)
        case MaskMemoryError():
            return overloaded(retry_after, message)
        case EngineOverloadedError():
            return overloaded(retry_after)
        case EngineDeadError():
            return ApiError(503, "the engine has stopped", code="engine_dead")
        case MaskError():
            return invalid(message, None, "invalid_mask")
        case _:
            return internal_error()


def without_folder(message: str, folder: Path, name: str) -> str:
    """`message` with paths relative to `folder`, and `folder` itself called `name`."""
    spellings = {str(path) for path in (folder, folder.absolute(), folder.resolve())}
    for spelling in sorted(spellings, key=len, reverse=True):
        if len(Path(spelling).parts) > 1:
            whole = rf"(?<![\w./-]){re.escape(spelling)}(?:(/)|(?![\w-]|\.\w))"
            message = re.sub(whole, lambda match: "" if match[1] else name, message)
    return message


def as_api_error(error: Exception) -> ApiError:
    """Any exception as an `ApiError`; what is not known to be safe to tell becomes a plain 500."""
    match error:
        case ApiError():
            return error
        case EngineError():
            return from_engine_error(error)
        case RequestValidationError():
            message, param, code = describe_validation_error(error.errors(), error.body)
            return invalid(message, param, code)
        case HTTPException():
            return ApiError(error.status_code, error.detail, headers=error.headers)
        case _:
            return internal_error()


async def handle_error(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's exception handler for every expected error."""
    answer = as_api_error(error)
    if not isinstance(error, ApiError) and answer.status_code in (404, 405):
        answer.detail = f"there is no {request.method[:10]} {request.scope['path'][:100]} here"
    if answer.status_code == 405:
        answer.headers = {"allow": ", ".join(_methods(request))}
    return answer.response()


def _methods(request: Request) -> list[str]:
    """All methods of a path: a router names those of the first route alone that has this path."""
    scopes = {method: {**request.scope, "method": method} for method in METHODS}
    return [
        method
        for method, scope in scopes.items()
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.router.routes)
    ]
