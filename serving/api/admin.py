"""`POST /v1/load_mask` and `/v1/unload_mask`, behind a key of their own and off by default."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

from engines.errors import EngineError, MaskError
from engines.mask_rules import check_name
from serving.api.answers import ERRORS, json_response
from serving.auth import AdminRoute
from serving.errors import ApiError, from_engine_error, invalid, without_folder
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
    try:
        check_name(body.mask_name)
    except MaskError as error:
        raise _refusal(service, error, "mask_name") from error
    path = await asyncio.to_thread(_within_root, service, body.mask_path)
    async with service.mask_lock:
        if body.mask_name in _loaded(service):
            raise invalid(
                f"a mask named {body.mask_name!r} is loaded; unload it first", "mask_name"
            )
        try:
            mask = await service.engine.load_mask(body.mask_name, path)
        except EngineError as error:
            raise _refusal(service, error, "mask_path") from error
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
            raise _refusal(service, error, "mask_name") from error
        service.metrics.labels.unload(f"{service.names.base}:{body.mask_name}")
    return json_response(UnloadMaskResponse(unloaded=body.mask_name))


def _loaded(service: Service) -> set[str]:
    return {mask.name for mask in service.engine.describe().masks}


def _refusal(service: Service, error: EngineError, param: str) -> ApiError:
    """What the engine says, without where this server's folders lie."""
    answer = from_engine_error(error)
    answer.param = answer.param or param
    folders = {
        service.settings.mask_root: "the mask folder",
        service.settings.directory: "the engine directory",
    }
    for folder, name in folders.items():
        if folder is not None:
            answer.detail = without_folder(answer.detail, folder, name)
    return answer


def _within_root(service: Service, given: str) -> Path:
    """The file that `given` names inside the mask folder, after following links.

    Raises:
        ApiError: 400; it is absolute, leaves the folder, or is no regular file. The answer is the
            same for all, so that nobody can ask which files exist elsewhere.
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
        if not path.is_relative_to(base):
            raise refused
        # Opening is what counts, and opening a pipe would wait for whoever writes to it. Links
        # have been followed: one here now has taken the file's place.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (OSError, RuntimeError) as error:
        raise refused from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise refused
    finally:
        os.close(descriptor)
    return path
