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
from serving.errors import ApiError, ClientGoneError, internal_error, invalid
from serving.metrics import RequestMeter

logger = logging.getLogger("serving")


class PromptChunk(NamedTuple):
    """A chunk of the `prompt`-th prompt of a request."""

    prompt: int
    chunk: GenerationChunk


class _End:
    """All choices have finished."""


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
        # Not asyncio's queue and timeout: they ask the system for the process's id every time.
        self._loop = asyncio.get_running_loop()
        self._batch: list[PromptChunk] = []
        self._ending: ApiError | _End | None = None
        self._news: asyncio.Future[None] | None = None
        self._reminder: asyncio.TimerHandle | None = None
        self._took = 0.0
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
            if self._reminder is not None:
                self._reminder.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            self._ticket.release()
            self._meter.close(self._unfinished)

    def cancel(self, error: ApiError) -> None:
        """End the generation; the reader gets `error` after the chunks that are there."""
        self._end(error)

    def remind(self, seconds: float) -> None:
        """From now on let `next_batch` give an empty batch after so many seconds of silence."""
        self._took = self._loop.time()
        self._reminder = self._loop.call_later(seconds, self._check_silence, seconds)

    async def pieces(self) -> AsyncIterator[PromptChunk]:
        """All chunks, in the order in which they come.

        Raises:
            ApiError: the engine refused or failed, or the generation was cancelled.
        """
        while True:
            batch = await self.next_batch()
            if batch is None:
                return
            for piece in batch:
                yield piece

    async def next_batch(self) -> list[PromptChunk] | None:
        """The chunks that are there, at least one unless `remind` was asked; None at the end.

        Raises:
            ApiError: as in `pieces`.
        """
        if not self._batch and self._ending is None:
            self._news = self._loop.create_future()
            await self._news
        batch, self._batch = self._batch, []
        self._took = self._loop.time()
        if batch or self._ending is None:
            return batch
        if isinstance(self._ending, ApiError):
            raise self._ending
        return None

    def _put(self, piece: PromptChunk) -> None:
        if self._ending is None:
            self._batch.append(piece)
            self._wake()

    def _end(self, ending: ApiError | _End) -> None:
        if self._ending is None:
            self._ending = ending
            self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _check_silence(self, seconds: float) -> None:
        rest = self._took + seconds - self._loop.time()
        if rest <= 0:
            self._wake()
            rest = seconds
        self._reminder = self._loop.call_later(rest, self._check_silence, seconds)

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
                    self._put(PromptChunk(index, chunk))
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
            self._end(_End())

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
