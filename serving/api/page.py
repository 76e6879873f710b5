"""`GET /`: the playground and status page. It needs no key: it asks for one, and sends it along.

Plain files without a build step; nothing in them comes from another host, and the policy that is
sent with them lets the browser load nothing else. It may connect to other servers, since answers of
two are compared side by side.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

from serving.errors import ApiError

router = APIRouter(include_in_schema=False)

INDEX = "index.html"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self'; connect-src 'self' http: https:; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@cache
def page_files() -> dict[str, bytes]:
    """Content of the page's files, by name."""
    folder = files("serving") / "page"
    return {item.name: item.read_bytes() for item in folder.iterdir() if item.is_file()}


@router.get("/")
async def show_page() -> Response:
    """The page."""
    return _file(INDEX)


@router.get("/page/{name}")
async def show_file(name: str) -> Response:
    """A file of it."""
    return _file(name)


def _file(name: str) -> Response:
    content = page_files().get(name)
    if content is None:
        raise ApiError(404, f"the page has no file {name[:80]!r}")
    media_type = MEDIA_TYPES[name[name.rindex(".") :]]
    return Response(content, headers=HEADERS, media_type=media_type)
