"""twofour on Ray Serve: replicas of one engine directory, and a front that knows where masks are.

    serve run deploy.ray.application:build directory=engine mask_folder=masks max_replicas=4

The front reads which mask a request names and sends it to a replica that holds it (Ray's model
multiplexing); a replica is `serving.app.create_app` in a process of its own. docs/scale-out.md has
the rest.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from deploy.ray.asgi_call import HttpCall, HttpStart, answer
from deploy.ray.held_masks import HeldMask, hold, is_there
from deploy.ray.named_mask import named_mask
from engines.base import Engine
from engines.errors import MaskError
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from serving.app import create_app
from serving.config import ServerSettings
from serving.errors import ApiError

REPLICA_HEADER = b"x-twofour-replica"
ATTEMPTS = 3
"""Times that a request is sent whose replica died before it answered."""
_OF_ONE_REPLICA = ("/metrics",)
"""Routes whose answer would be one replica's, whichever."""

logger = logging.getLogger("ray.serve")


class Arguments(BaseModel):
    """What `serve run` takes after the name of the application."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    directory: Path = Field(description="Engine directory, at the same path on every node.")
    mask_folder: Path | None = Field(
        None, description="Folder of NAME.safetensors: masks that are loaded when first named."
    )
    masks_per_replica: int = Field(8, ge=1, description="Most masks that a replica takes from it.")
    min_replicas: int = Field(1, ge=1, description="Replicas that are always there.")
    max_replicas: int = Field(4, ge=1, description="Most replicas.")
    target_requests: float = Field(
        8.0, gt=0, description="Requests a replica that autoscaling aims at, waiting ones included."
    )
    upscale_seconds: float = Field(
        30.0, ge=0, description="How long there must be too many before a replica is added."
    )
    downscale_seconds: float = Field(
        600.0, ge=0, description="How long there must be too few before a replica goes."
    )
    max_requests: int = Field(64, ge=1, description="Most requests that a replica is given.")
    max_queued: int = Field(
        256, ge=1, description="Most requests that wait for a replica; more get 429."
    )
    fronts: int = Field(1, ge=1, description="Processes that take requests and send them on.")
    cpus: float = Field(1.0, gt=0, description="Processors that Ray sets aside for a replica.")
    server: dict[str, Any] = Field(
        default_factory=dict, description="Further settings of the server, as `twofour serve` has."
    )


class Replica:
    """The server on one engine."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, settings: dict[str, Any], mask_folder: str | None, most: int
    ) -> None:
        self._app = create_app(ServerSettings(**settings))
        self._folder = None if mask_folder is None else Path(mask_folder)
        self._name = serve.get_replica_context().replica_id.unique_id.encode()
        self._running = self._app.router.lifespan_context(self._app)
        await self._running.__aenter__()
        self._engine: Engine = self._app.state.service.engine

        async def load(mask: str) -> HeldMask:
            return await hold(self._engine, self._folder, mask)

        # Not a decorator of a method, because how many is an argument.
        self._held: Any = serve.multiplexed(max_num_models_per_replica=most)(load)

    async def answer(self, call: HttpCall) -> AsyncIterator[HttpStart | bytes]:
        """Run a request with its mask; see `deploy.ray.asgi_call.answer`."""
        mask = serve.get_multiplexed_model_id()
        if not mask or not is_there(self._engine, self._folder, mask):
            async for piece in self._answer(call):
                yield piece
            return
        try:
            held: HeldMask = await self._held(mask)
        except MaskError as error:
            refusal = ApiError(400, f"mask {mask!r} cannot be loaded: {error}", param="model")
            response = refusal.response()
            yield HttpStart(response.status_code, response.raw_headers)
            yield bytes(response.body)
            return
        async with held.used():
            async for piece in self._answer(call):
                yield piece

    async def _answer(self, call: HttpCall) -> AsyncIterator[HttpStart | bytes]:
        async for piece in answer(self._app, call):
            if isinstance(piece, HttpStart):
                piece.headers.append((REPLICA_HEADER, self._name))
            yield piece

    async def check_health(self) -> None:
        """Ray asks now and then, and replaces a replica that raises."""
        probe = HttpCall("GET", "/livez", b"", [], b"")
        async for piece in answer(self._app, probe):
            if isinstance(piece, HttpStart) and piece.status != 200:
                raise RuntimeError("the engine no longer steps")


class Front:
    """Takes requests and sends each to a replica that holds its mask."""

    def __init__(self, replicas: DeploymentHandle, most_bytes: int) -> None:
        self._replicas = replicas
        self._most_bytes = most_bytes

    async def __call__(self, request: Request) -> Response:
        """The answer of a replica, streamed through."""
        if request.url.path in _OF_ONE_REPLICA:
            return ApiError(404, "every replica has its own; scrape Ray's metrics").response()
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._most_bytes:
                limit = f"the limit is {self._most_bytes} bytes"
                return ApiError(413, f"the body is too large: {limit}").response()
        url, headers = request.url, request.headers.raw
        call = HttpCall(request.method, url.path, url.query.encode(), headers, bytes(body))
        mask = named_mask(call.body)
        for attempt in range(1, ATTEMPTS + 1):
            pieces = self._replicas.options(
                stream=True, multiplexed_model_id=mask, method_name="answer"
            ).remote(call)
            try:
                start: HttpStart = await anext(pieces)
            except RayActorError as error:
                # Nothing was sent, and a request changes nothing, so that it may be sent again.
                logger.warning("attempt %d: a replica died before it answered: %s", attempt, error)
                continue
            except BackPressureError as error:
                return ApiError(429, str(error), headers={"retry-after": "1"}).response()
            except DeploymentUnavailableError as error:
                return ApiError(503, str(error)).response()
            except asyncio.CancelledError:
                pieces.cancel()
                raise
            return _streamed(start, pieces)
        return ApiError(503, f"{ATTEMPTS} replicas died before they answered").response()


def _streamed(start: HttpStart, pieces: DeploymentResponseGenerator[bytes]) -> Response:
    events = any(
        name == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in start.headers
    )

    async def through() -> AsyncIterator[bytes]:
        try:
            async for piece in pieces:
                yield piece
        except RayActorError:
            logger.warning("a replica died in the middle of an answer")
            if not events:
                raise  # the connection breaks, which is what a cut answer must look like
            lost = ApiError(503, "the replica of this answer died; ask again", code="replica_died")
            yield f"data: {json.dumps(lost.body())}\n\n".encode()
        finally:
            pieces.cancel()

    response = StreamingResponse(through(), status_code=start.status)
    response.raw_headers = [
        (name, value) for name, value in start.headers if name != b"transfer-encoding"
    ]
    return response


def build(arguments: Arguments) -> serve.Application:
    """The application; what `serve run` calls.

    Raises:
        ValueError: the directory or folder is missing, or the numbers contradict each other.
    """
    if arguments.max_replicas < arguments.min_replicas:
        raise ValueError(
            f"max_replicas ({arguments.max_replicas}) is below min_replicas"
            f" ({arguments.min_replicas})"
        )
    for folder in (arguments.directory, arguments.mask_folder):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{folder} is no folder")
    settings = {"directory": str(arguments.directory.resolve()), **arguments.server}
    limits = ServerSettings(**settings)
    folder = arguments.mask_folder
    replicas = (
        serve.deployment(Replica)
        .options(
            max_ongoing_requests=arguments.max_requests,
            max_queued_requests=arguments.max_queued,
            autoscaling_config=AutoscalingConfig(
                min_replicas=arguments.min_replicas,
                max_replicas=arguments.max_replicas,
                target_ongoing_requests=arguments.target_requests,
                upscale_delay_s=arguments.upscale_seconds,
                downscale_delay_s=arguments.downscale_seconds,
            ),
            ray_actor_options={"num_cpus": arguments.cpus},
            graceful_shutdown_timeout_s=limits.shutdown_timeout,
        )
        .bind(
            settings, None if folder is None else str(folder.resolve()), arguments.masks_per_replica
        )
    )
    return (
        serve.deployment(Front)
        .options(
            num_replicas=arguments.fronts,
            max_ongoing_requests=arguments.max_requests * arguments.max_replicas
            + arguments.max_queued,
            ray_actor_options={"num_cpus": 0},
        )
        .bind(replicas, limits.max_body_bytes)
    )
