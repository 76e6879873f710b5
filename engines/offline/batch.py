"""Runs many prompts through an engine at once, however short its waiting queue is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from engines.base import (
    Engine,
    FinishReason,
    GenerationChunk,
    GenerationRequest,
    TokenLogprobs,
)
from engines.errors import EngineError, EngineOverloadedError
from engines.offline.outputs import CompletionOutput


@dataclass(slots=True)
class Answers:
    """What one request has generated so far; the fields of `RequestOutput`."""

    outputs: tuple[CompletionOutput, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    cached_tokens: int = 0


class BatchRunner:
    """Runs requests of one engine together; used from the engine's event loop alone.

    An engine refuses what its waiting queue cannot hold. Such a request is tried again whenever
    another one has left the queue, so the queue's length limits no batch.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._running = 0
        self._room = asyncio.Semaphore(0)

    async def run(self, requests: Sequence[GenerationRequest]) -> list[Answers]:
        """The answers to all requests; if one fails, the others are aborted.

        Raises:
            EngineError: of the first request that failed, with a note that says which it was.
        """
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._run_noted(request, f"prompt {i} of {len(requests)}"))
                    for i, request in enumerate(requests, start=1)
                ]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _run_noted(self, request: GenerationRequest, note: str) -> Answers:
        try:
            while (answers := await self._attempt(request)) is None:
                await self._room.acquire()
        except Exception as error:
            error.add_note(note)
            raise
        return answers

    async def _attempt(self, request: GenerationRequest) -> Answers | None:
        """The answers, or None if the engine is full of other requests."""
        refused = False
        self._running += 1
        try:
            return await self._collect(request)
        except EngineOverloadedError:
            if self._running == 1:  # nothing will make room: it is too much by itself
                raise
            refused = True
            return None
        finally:
            self._running -= 1
            if not refused:
                self._make_room()

    async def _collect(self, request: GenerationRequest) -> Answers:
        answers = Answers()
        choices = [_Choice(index) for index in range(request.sampling.n)]
        chunks = self._engine.generate(request)
        started = False
        # Engines write `generate` as an async generator: closing it aborts the request.
        async with aclosing(chunks):  # type: ignore[type-var]
            async for chunk in chunks:
                if not started:
                    started = True
                    self._make_room()
                if chunk.finish_reason == "error":
                    raise EngineError(f"the engine failed: {chunk.error}")
                if chunk.prompt_logprobs is not None:
                    answers.prompt_logprobs = chunk.prompt_logprobs
                answers.cached_tokens = max(answers.cached_tokens, chunk.cached_tokens)
                choices[chunk.index].add(chunk)
        logprobs = request.sampling.logprobs is not None
        answers.outputs = tuple(choice.output(logprobs=logprobs) for choice in choices)
        return answers

    def _make_room(self) -> None:
        """Let one waiting request try again."""
        if self._room.locked():  # so permits do not pile up while nobody waits
            self._room.release()


@dataclass(slots=True)
class _Choice:
    index: int
    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    def add(self, chunk: GenerationChunk) -> None:
        self.texts.append(chunk.text)
        self.token_ids += chunk.token_ids
        self.logprobs += chunk.logprobs or ()
        if chunk.finish_reason is not None:
            self.finish_reason, self.stop_reason = chunk.finish_reason, chunk.stop_reason

    def output(self, *, logprobs: bool) -> CompletionOutput:
        if self.finish_reason is None:
            raise EngineError(f"the engine ended choice {self.index} without a finish reason")
        return CompletionOutput(
            index=self.index,
            text="".join(self.texts),
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs) if logprobs else None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )
