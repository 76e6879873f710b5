"""`POST /v1/load_mask` and `/v1/unload_mask`, behind a key of their own and off by default."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

from engines.errors import EngineError
from serving.api.responses import ERRORS, json_response
from serving.auth import AdminRoute
from serving.errors import ApiError, from_engine_error, invalid
from serving.names import mask_card
from serving.schemas.other import (
    LoadMaskRequest,
    MaskCard,
    UnloadMaskRequest,
    UnloadMaskResponse,
)
from serving.service import Service, ServiceDep

router = APIRouter(route_class=AdminRoute, tags=["admin"])


@router.post("/v1/load_mask", response_model=MaskCard, responses=ERRORS)
async def load_mask(body: LoadMaskRequest, service: ServiceDep) -> Response:
    """Load a mask file; requests may name it as soon as this returns."""
    path = _within_root(service, body.mask_path)
    async with service.mask_lock:
        if body.mask_name in _loaded(service):
            raise invalid(
                f"a mask named {body.mask_name!r} is loaded; unload it first", "mask_name"
            )
        try:
            mask = await service.engine.load_mask(body.mask_name, path)
        except EngineError as error:
            answer = from_engine_error(error)
            answer.param = answer.param or "mask_path"
            # The message names the file; where the folder lies is nobody's business.
            answer.detail = answer.detail.replace(str(path), body.mask_path)
            raise answer from error
    return json_response(mask_card(mask))


@router.post("/v1/unload_mask", response_model=UnloadMaskResponse, responses=ERRORS)
async def unload_mask(body: UnloadMaskRequest, service: ServiceDep) -> Response:
    """Forget a mask; requests that run with it finish."""
    async with service.mask_lock:
        if body.mask_name not in _loaded(service):
            raise ApiError(
                404,
                f"no mask named {body.mask_name!r} is loaded",
                param="mask_name",
                code="mask_not_found",
            )
        try:
            await service.engine.unload_mask(body.mask_name)
        except EngineError as error:
            answer = from_engine_error(error)
            answer.param = answer.param or "mask_name"
            raise answer from error
        service.metrics.forget_model(f"{service.names.base}:{body.mask_name}")
    return json_response(UnloadMaskResponse(unloaded=body.mask_name))


def _loaded(service: Service) -> set[str]:
    return {mask.name for mask in service.engine.describe().masks}


def _within_root(service: Service, given: str) -> Path:
    """The file that `given` names inside the mask folder, after following links.

    Raises:
        ApiError: 400; it is absolute, leaves the folder, or is not a file. The answer is the same
            for all, so that nobody can ask which files exist elsewhere.
    """
    refused = invalid(
        "mask_path must name a mask file inside the server's mask folder", "mask_path"
    )
    root = service.settings.mask_root
    if root is None or "\0" in given or Path(given).is_absolute():
        raise refused
    base = root.resolve()
    try:
        path = (base / given).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise refused from error
    if not path.is_relative_to(base) or not path.is_file():
        raise refused
    return path
