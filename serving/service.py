"""What the routes share: the engine, and the way from a request body to a running generation."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated
from uuid import uuid4

from fastapi import Depends
from starlette.requests import Request

from engines.base import Engine, GenerationChunk, GenerationRequest
from engines.errors import EngineDeadError, EngineError, MaskError
from engines.sampling import SamplingParams
from serving.admission import Admission, Ticket
from serving.config import ServerSettings
from serving.constraints import Constraints
from serving.engine_metrics import EngineCollector
from serving.errors import ApiError, as_api_error, from_engine_error
from serving.generation import Generation
from serving.metrics import Metrics, RequestMeter
from serving.names import ModelNames, ResolvedModel
from serving.prompts import Prompts
from serving.tokens import TokenTexts
from serving.tools.tooling import Tooling
from serving.tracing import Tracing

logger = logging.getLogger("serving")


class Service:
    """One engine with everything around it; made when the app starts."""

    def __init__(
        self,
        settings: ServerSettings,
        engine: Engine,
        metrics: Metrics,
        admission: Admission,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing
        info = engine.describe()
        self.settings = settings
        self.engine = engine
        self.metrics = metrics
        self.admission = admission
        self.vocab_size = info.vocab_size
        self.context_length = info.context_length
        self.names = ModelNames(engine, settings.served_model_name, int(time.time()))
        self.tooling = Tooling(
            engine.codec, settings.tool_parser, settings.json_whitespace == "any"
        )
        self.prompts = Prompts(engine.codec, info.context_length, info.vocab_size, self.tooling)
        self.tokens = TokenTexts(engine.codec)
        self.constraints = Constraints(engine.constraints)
        self.mask_lock = asyncio.Lock()
        self.engine_died = False
        metrics.registry.register(EngineCollector(engine, self.names, admission, metrics.labels))

    def generation(
        self,
        http: Request,
        ticket: Ticket,
        target: ResolvedModel,
        prompts: Sequence[tuple[int, ...]],
        sampling: SamplingParams,
        cache_salt: str | None,
    ) -> Generation:
        """The generation of one HTTP request, not yet started.

        The engine's request ids are our own: a client may send the same x-request-id twice.
        """
        stem = uuid4().hex
        requests = [
            GenerationRequest(f"{stem}-{index}", prompt, sampling, target.mask, cache_salt or "")
            for index, prompt in enumerate(prompts)
        ]
        span = None if self._tracing is None else self._tracing.span()
        lengths = [len(prompt) for prompt in prompts]
        meter = RequestMeter(self.metrics, target.model, lengths, span)

        def start(request: GenerationRequest) -> AsyncIterator[GenerationChunk]:
            # No await lies between this check and the engine's own look-up of the mask.
            self.names.check_unchanged(target)
            return self.engine.generate(request)

        return Generation(
            requests, start, self._explain, ticket, meter, http.receive, http.state.request_id
        )

    def _explain(self, error: Exception) -> ApiError:
        if isinstance(error, EngineDeadError):
            self.engine_died = True
        if isinstance(error, MaskError):  # it was listed, and can no longer be made
            logger.error("a mask cannot be used: %s", error)
            message = "the mask cannot be loaded any more; the server's log says why"
            return ApiError(503, message, param="model", code="mask_unavailable")
        if isinstance(error, EngineError):
            return from_engine_error(error, self.admission.retry_after)
        return as_api_error(error)

    async def close(self) -> None:
        """Close the engine and what was made for it."""
        self.prompts.close()
        self.constraints.close()
        await self.engine.close()


async def get_service(request: Request) -> Service:
    """The app's service; not a plain function, which would be called in another thread."""
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(get_service)]
