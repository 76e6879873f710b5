"""Routes that `vllm serve` gets for masks, when `VLLM_PLUGINS` names `twofour`.

    GET  /v1/masks           the masks of the engine directory, and which one is active
    POST /v1/masks/active    {"mask": NAME}: drain, switch, drop the prefix cache, resume

Below /v1, so that vLLM's --api-key guards them. Only masks that the directory carries can be named:
no path comes in over HTTP. The workers need MaskWorker as their extension.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from engines.directory.manifest import read_manifest
from engines.errors import EngineDirectoryError, UnknownMaskError
from engines.vllm_plugin.catalog import MaskCatalog

_SWITCH_TIMEOUT = 600.0

router = APIRouter()


class SwitchRequest(BaseModel):
    """Body of `POST /v1/masks/active`."""

    model_config = ConfigDict(extra="forbid")

    mask: str


class MaskSwitcher:
    """Which mask vLLM's workers run, and how to make it another.

    Args:
        client: vLLM's engine client.
        directory: the engine directory that it serves.

    Raises:
        EngineDirectoryError: the directory is malformed.
    """

    def __init__(self, client: Any, directory: Path) -> None:
        manifest = read_manifest(directory)
        self._client = client
        self._catalog = MaskCatalog(directory, manifest)
        self._lock = asyncio.Lock()
        self.active = manifest.default_mask

    def describe(self) -> dict[str, Any]:
        """The answer of `GET /v1/masks`."""
        infos = self._catalog.infos({}, self.active)
        return {
            "object": "list",
            "active": self.active,
            "data": [
                {"id": i.name, "object": "mask", "digest": i.digest, "domain": i.domain}
                for i in infos
            ],
        }

    async def switch(self, name: str) -> dict[str, Any]:
        """Make `name` the active mask once what runs now has ended.

        Raises:
            UnknownMaskError: the directory carries no such mask.
        """
        resolved = self._catalog.resolve(name)
        entry = self._catalog.entry(name)
        async with self._lock:
            if resolved != self.active:
                # Clearing the caches here is what keeps entries of the two masks apart.
                await self._client.pause_generation(mode="wait", clear_cache=True)
                try:
                    await self._client.collective_rpc(
                        "twofour_switch_mask",
                        timeout=_SWITCH_TIMEOUT,
                        args=(str(entry.file.absolute()), entry.digest, self._catalog.identity),
                    )
                    self.active = name
                finally:
                    await self._client.resume_generation()
        return {"active": self.active, "digest": entry.digest}


class MaskRoutes:
    """vLLM's `EndpointPlugin` protocol."""

    name = "twofour"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        app.include_router(router)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        directory = Path(engine_client.model_config.model)
        try:
            state.twofour_masks = MaskSwitcher(engine_client, directory)
        except EngineDirectoryError:
            state.twofour_masks = None  # another model: the routes say so


@router.get("/v1/masks")
async def list_masks(request: Request) -> JSONResponse:
    """The masks of the engine directory."""
    switcher: MaskSwitcher | None = request.app.state.twofour_masks
    if switcher is None:
        return _error(404, "this model is no twofour engine directory")
    return JSONResponse(switcher.describe())


@router.post("/v1/masks/active")
async def switch_mask(request: Request, body: SwitchRequest) -> JSONResponse:
    """Make another mask the active one."""
    switcher: MaskSwitcher | None = request.app.state.twofour_masks
    if switcher is None:
        return _error(404, "this model is no twofour engine directory")
    try:
        return JSONResponse(await switcher.switch(body.mask))
    except UnknownMaskError as error:
        return _error(404, str(error))


def _error(status: int, message: str) -> JSONResponse:
    kind = "invalid_request_error"
    detail = {"message": message, "type": kind, "param": None, "code": str(status)}
    return JSONResponse({"error": detail}, status_code=status)
