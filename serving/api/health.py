"""Probes. They need no key, and tell nothing but whether this server works.

`/livez`: a restart would not help. `/readyz`: requests are welcome. `/health`: as `/livez`, under
the name that other servers use. An engine that has work and does not step is neither alive nor
ready, whatever its process does. `/ping` is `/health` under the name that SageMaker asks for.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import JSONResponse

from engines.errors import EngineError
from serving.api.answers import ERRORS
from serving.errors import ApiError
from serving.service import Service, ServiceDep

router = APIRouter(tags=["monitoring"])

PATHS = ("/health", "/livez", "/ping", "/readyz")
_UNHEALTHY: dict[int | str, dict[str, Any]] = {503: ERRORS[503]}


class Health(BaseModel):
    """The answer of a probe that passes."""

    status: str


@router.head("/health", include_in_schema=False)
@router.head("/livez", include_in_schema=False)
@router.head("/ping", include_in_schema=False)
@router.get("/health", response_model=Health, responses=_UNHEALTHY)
@router.get("/livez", response_model=Health, responses=_UNHEALTHY)
@router.get("/ping", response_model=Health, responses=_UNHEALTHY)
async def live(service: ServiceDep) -> JSONResponse:
    """Whether the engine steps."""
    _check_engine(service)
    return JSONResponse({"status": "ok"})


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", response_model=Health, responses=_UNHEALTHY)
async def ready(service: ServiceDep) -> JSONResponse:
    """Whether the engine steps and new requests are taken."""
    service.admission.check_open()
    _check_engine(service)
    return JSONResponse({"status": "ok"})


def _check_engine(service: Service) -> None:
    if service.engine_died:
        raise ApiError(503, "the engine has stopped", code="engine_dead")
    try:
        age = service.engine.stats().seconds_since_step
    except EngineError as error:
        raise ApiError(503, "the engine has stopped", code="engine_dead") from error
    if age > service.settings.max_step_age:
        raise ApiError(
            503, f"the engine has work and made no step for {age:.0f} s", code="engine_stalled"
        )
