"""One HTTP request's generation: its engine requests merged into one stream of chunks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import NamedTuple, Self

from starlette.types import Receive

from engines.base import GenerationChunk, GenerationRequest
from serving.admission import Ticket
from serving.errors import ApiError, internal_error, invalid
from serving.metrics import RequestMeter

logger = logging.getLogger("serving")


class PromptChunk(NamedTuple):
    """A chunk of the `prompt`-th prompt of a request."""

    prompt: int
    chunk: GenerationChunk


class _End:
    """All choices have finished."""


class ClientGoneError(ApiError):
    """The client closed the connection; nobody reads the answer."""

    def __init__(self) -> None:
        super().__init__(499, "the client closed the connection")


class Generation:
    """Runs the engine requests of one HTTP request; an async context manager.

    Args:
        requests: one for each prompt.
        start: runs one of them.
        explain: what an exception of the engine is over HTTP.
        ticket: the request's slots.
        meter: is shown every chunk.
        receive: tells when the client is gone.
        request_id: for the log.

    Leaving it aborts whatever still runs and gives the slots back. A client that disconnects, a
    server that shuts down and an engine that fails all end it through `cancel`, after the chunks
    that were already there.
    """

    def __init__(
        self,
        requests: Sequence[GenerationRequest],
        start: Callable[[GenerationRequest], AsyncIterator[GenerationChunk]],
        explain: Callable[[Exception], ApiError],
        ticket: Ticket,
        meter: RequestMeter,
        receive: Receive,
        request_id: str,
    ) -> None:
        self._requests = requests
        self._start = start
        self._explain = explain
        self._ticket = ticket
        self._meter = meter
        self._receive = receive
        self._request_id = request_id
        self._queue: asyncio.Queue[PromptChunk | ApiError | _End] = asyncio.Queue()
        self._batch: list[PromptChunk] = []
        self._ending: ApiError | _End | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._running = len(requests)
        self._unfinished = sum(request.sampling.n for request in requests)

    async def __aenter__(self) -> Self:
        self._ticket.on_end(self.cancel)
        self._tasks = [
            asyncio.create_task(self._pump(index, request))
            for index, request in enumerate(self._requests)
        ]
        self._tasks.append(asyncio.create_task(self._watch_client()))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            self._ticket.release()
            self._meter.close(self._unfinished)

    def cancel(self, error: ApiError) -> None:
        """End the generation; the reader gets `error` after the chunks that are there."""
        self._queue.put_nowait(error)

    async def pieces(self) -> AsyncIterator[PromptChunk]:
        """All chunks, in the order in which they come.

        Raises:
            ApiError: the engine refused or failed, or the generation was cancelled.
        """
        while True:
            batch = await self.next_batch(None)
            if batch is None:
                return
            for piece in batch:
                yield piece

    async def next_batch(self, timeout: float | None) -> list[PromptChunk] | None:
        """The chunks that are there, at least one; None at the end.

        Raises:
            TimeoutError: nothing came within `timeout` seconds; call again.
            ApiError: as in `pieces`.
        """
        if self._ending is None:
            async with asyncio.timeout(timeout):
                self._take(await self._queue.get())
            while self._ending is None and not self._queue.empty():
                self._take(self._queue.get_nowait())
        batch, self._batch = self._batch, []
        if batch:
            return batch
        if isinstance(self._ending, ApiError):
            raise self._ending
        return None

    def _take(self, item: PromptChunk | ApiError | _End) -> None:
        if isinstance(item, PromptChunk):
            self._batch.append(item)
        else:
            self._ending = item

    async def _pump(self, index: int, request: GenerationRequest) -> None:
        started: set[int] = set()
        unfinished = request.sampling.n
        try:
            chunks = self._start(request)
            # Engines write `generate` as an async generator: closing it aborts the request.
            async with aclosing(chunks):  # type: ignore[type-var]
                async for chunk in chunks:
                    if chunk.finish_reason in ("abort", "error"):
                        raise self._ended_by_engine(chunk)
                    if chunk.index not in started:
                        started.add(chunk.index)
                        self._ticket.started()
                    self._meter.chunk(index, chunk)
                    self._queue.put_nowait(PromptChunk(index, chunk))
                    if chunk.finish_reason is not None:
                        unfinished -= 1
                        self._unfinished -= 1
            if unfinished:
                logger.error("request %s ended without a finish reason", self._request_id)
                raise internal_error()
        except Exception as error:
            answer = self._explain(error)
            if answer is not error and answer.status_code >= 500:
                logger.exception("request %s failed in the engine", self._request_id)
            self.cancel(answer)
        self._running -= 1
        if not self._running:
            self._queue.put_nowait(_End())

    def _ended_by_engine(self, chunk: GenerationChunk) -> ApiError:
        if chunk.invalid:
            return invalid(chunk.error or "the request cannot be run", None)
        if chunk.finish_reason == "abort":
            return ApiError(503, "the engine ended this request", code="aborted")
        logger.error("request %s failed in the engine: %s", self._request_id, chunk.error)
        return internal_error()

    async def _watch_client(self) -> None:
        # The body was read, so all that can still come is the end of the connection.
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.cancel(ClientGoneError())
                return
