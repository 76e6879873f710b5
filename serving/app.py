"""`create_app`: the ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from engines import registry
from engines.base import Engine
from engines.errors import EngineDirectoryError, EngineError
from serving.admission import Admission
from serving.api import (
    admin,
    chat,
    completions,
    health,
    metrics,
    models,
    page,
    responses,
    tokenize,
)
from serving.auth import ApiRoute, KeyRing
from serving.browser_origins import CORS, BrowserOrigins
from serving.config import ServerSettings
from serving.errors import handle_error
from serving.metrics import Metrics
from serving.middleware import BodyLimits, Compression, RequestContext, answer_failure
from serving.opening_log import OpeningLog
from serving.service import Service
from serving.tracing import Tracing
from serving.unknown_fields import UnknownFieldLog

description = APIRouter(route_class=ApiRoute, include_in_schema=False)


@description.get("/openapi.json")
async def openapi(request: Request) -> JSONResponse:
    """The description of all routes."""
    schema = request.app.openapi()
    if request.app.state.service.settings.api_key:
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in schema["paths"].items():
            for operation in operations.values() if path not in health.PATHS else ():
                operation["security"] = [{"key": []}]
    return JSONResponse(schema)


def create_app(
    settings: ServerSettings, engine: Engine | None = None, tracing: Tracing | None = None
) -> FastAPI:
    """The server for one engine.

    Args:
        settings: what to serve and how.
        engine: an engine to serve instead of the one in `settings.directory`. The app closes it.
        tracing: where traces go instead of to `settings.otlp_endpoint`. The app closes it.

    The engine is opened when the app starts, and its event loop is the one that uses it.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = Service(settings, engine or open_engine(settings), counts, admission, tracing)
        app.state.service = service
        try:
            yield
        finally:
            await service.close()
            if tracing is not None:
                # It sends what is left: not on the event loop.
                await asyncio.to_thread(tracing.close)

    if tracing is None and settings.otlp_endpoint is not None:
        tracing = Tracing(settings.otlp_endpoint)
    counts = Metrics(settings.max_mask_labels)
    admission = Admission(settings.max_waiting, settings.max_choices)
    app = FastAPI(
        title="twofour",
        summary="Sparse language models over OpenAI's API, with a mask per request.",
        version=metrics.package_version(),
        lifespan=lifespan,
        # Swagger's page loads scripts from elsewhere, and FastAPI's own routes would need no key.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.admission = admission
    app.state.keys = {
        "api": KeyRing("api", settings.api_key),
        "admin": KeyRing("admin", settings.admin_api_key),
    }
    app.state.unknown_fields = UnknownFieldLog() if settings.unknown_fields == "ignore" else None
    routers = [health, completions, chat, responses, models, tokenize, metrics]
    if settings.mask_root is not None:
        routers.append(admin)
    if settings.web_page:
        routers.append(page)
    for module in routers:
        app.include_router(module.router)
    app.include_router(description)
    for kind in (HTTPException, RequestValidationError, EngineError):
        app.add_exception_handler(kind, handle_error)
    app.add_middleware(BodyLimits, limit=settings.max_body_bytes, timeout=settings.body_timeout)
    # Cheap is enough: text shrinks to a third. Streams of events are left as they are.
    app.add_middleware(Compression, minimum_size=1024, compresslevel=1)
    failed: ASGIApp = answer_failure
    if settings.allowed_origins:
        origins = CORS | {"allow_origins": settings.allowed_origins}
        app.add_middleware(BrowserOrigins, **origins)
        failed = BrowserOrigins(answer_failure, **origins)
    if tracing is not None:
        app.add_middleware(tracing.around)
    app.add_middleware(
        RequestContext, metrics=counts, access_log=settings.access_log, failed=failed
    )
    return app


def open_engine(settings: ServerSettings) -> Engine:
    """The engine in `settings.directory`."""
    options = {"verify": settings.verify} | settings.engine_options
    try:
        return registry.open_engine(settings.directory, OpeningLog(), **options)
    except ModuleNotFoundError as error:
        raise EngineDirectoryError(
            f"{settings.directory} needs {error.name}, which is not installed: install the extra"
            " of its target (train, vllm or tensorrt-llm)"
        ) from error
