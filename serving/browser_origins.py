"""Which web pages of other origins may call the server (CORS)."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from serving.errors import ApiError

# Keys come in a header that pages set themselves, and there are no cookies: no credentials.
CORS: dict[str, Any] = {
    "allow_methods": ("GET", "HEAD", "POST"),
    "allow_headers": ("*",),
    "expose_headers": ("x-request-id", "retry-after"),
}


class BrowserOrigins(CORSMiddleware):
    """starlette's middleware, with refusals in the shape of all others."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser that asks whether it may."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        return ApiError(
            403, f"{bytes(answer.body).decode()} (the setting allowed_origins)"
        ).response()
