"""`POST /v1/chat/completions`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from engines.base import GenerationChunk, TokenLogprobs
from serving.api.responses import ERRORS, finish_reason, whole_response
from serving.auth import ApiRoute
from serving.generation import Generation, PromptChunk
from serving.logprob_limit import limit_logprobs
from serving.names import ResolvedModel
from serving.sampling import constraint_field, to_sampling
from serving.schemas.chat import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    ChatRequest,
    ChatResponse,
)
from serving.service import Service, ServiceDep
from serving.streaming import EventStream
from serving.tokens import chat_logprobs, prompt_logprobs
from serving.usage import UsageCounter

router = APIRouter(route_class=ApiRoute, tags=["generation"])


@router.post("/v1/chat/completions", response_model=ChatResponse, responses=ERRORS)
async def create_chat_completion(body: ChatRequest, http: Request, service: ServiceDep) -> Response:
    """Answer a conversation."""
    target = service.names.resolve(body.model, body.mask)
    service.admission.check(body.n or 1, "n")
    max_tokens = body.max_completion_tokens or body.max_tokens
    sampling = to_sampling(
        body,
        max_tokens=max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        vocab_size=service.vocab_size,
    )
    await service.constraints.check(sampling.structured, constraint_field(body))
    ticket = service.admission.admit(body.n or 1, "n")
    try:
        prompt = await service.prompts.chat(body.messages)
        service.prompts.check_room([prompt], max_tokens)
        sampling = limit_logprobs(
            sampling,
            [prompt],
            streamed=bool(body.stream),
            context_length=service.context_length,
            limit=service.settings.max_logprob_entries,
            param="logprobs" if body.prompt_logprobs is None else "prompt_logprobs",
        )
        generation = service.generation(http, ticket, target, [prompt], sampling, body.cache_salt)
    except BaseException:
        ticket.release()
        raise
    answer = ChatAnswer(service, body, target, prompt)
    if body.stream:
        return EventStream(generation, answer, service.settings.keep_alive_interval)
    await answer.read(generation)
    return await whole_response(answer.whole, answer.logprob_rows)


@dataclass
class _Choice:
    """What one choice has so far."""

    text: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    last: GenerationChunk | None = None


class ChatAnswer:
    """Builds the answer, whole or as chunks."""

    def __init__(
        self, service: Service, body: ChatRequest, target: ResolvedModel, prompt: tuple[int, ...]
    ) -> None:
        self._service = service
        self._body = body
        self._target = target
        self._n = body.n or 1
        self._choices = [_Choice() for _ in range(self._n)]
        self._prompt_entries: tuple[TokenLogprobs | None, ...] = ()
        self._usage = UsageCounter([prompt])
        self._id = f"chatcmpl-{uuid4().hex}"
        self._created = int(time.time())
        options = body.stream_options
        self._include_usage = bool(options and options.include_usage)
        self._running_usage = bool(
            self._include_usage and options and options.continuous_usage_stats
        )

    async def read(self, generation: Generation) -> None:
        """Take the whole generation in.

        Raises:
            ApiError: the generation failed.
        """
        async with generation:
            async for piece in generation.pieces():
                self._usage.add(piece)
                choice = self._choices[piece.chunk.index]
                choice.text += piece.chunk.text
                choice.logprobs.extend(piece.chunk.logprobs or ())
                choice.last = piece.chunk
                self._prompt_entries = piece.chunk.prompt_logprobs or self._prompt_entries

    @property
    def logprob_rows(self) -> int:
        """Tokens whose log-probs the answer shows."""
        return len(self._prompt_entries) + sum(len(c.logprobs) for c in self._choices)

    def whole(self) -> ChatResponse:
        """The whole answer, once it was read."""
        answer = ChatResponse(
            id=self._id,
            object="chat.completion",
            created=self._created,
            model=self._target.model,
            choices=[self._finished(index, choice) for index, choice in enumerate(self._choices)],
            usage=self._usage.usage(),
            system_fingerprint=self._target.fingerprint,
        )
        if self._body.prompt_logprobs is not None:
            answer.prompt_logprobs = prompt_logprobs(
                self._service.tokens, self._prompt_entries, self._body.prompt_logprobs
            )
        return answer

    def opening(self) -> Sequence[BaseModel]:
        """Every choice begins with its role."""
        delta = ChatDelta(role="assistant", content="")
        return [self._chunk([_chunk_choice(index, delta)]) for index in range(self._n)]

    def event(self, piece: PromptChunk) -> BaseModel | None:
        """The event for one chunk."""
        self._usage.add(piece)
        new = piece.chunk
        if not (new.text or new.token_ids or new.finish_reason):
            return None
        delta = ChatDelta(content=new.text) if new.text or new.token_ids else ChatDelta()
        choice = _chunk_choice(new.index, delta, self._logprobs(new.logprobs), new)
        return self._chunk([choice])

    def closing(self) -> Sequence[BaseModel]:
        """The token counts, if they were asked for."""
        if not self._include_usage:
            return ()
        chunk = self._chunk([])
        chunk.usage = self._usage.usage()
        return [chunk]

    def _finished(self, index: int, choice: _Choice) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=AssistantMessage(role="assistant", content=choice.text, refusal=None),
            logprobs=self._logprobs(choice.logprobs),
            finish_reason=finish_reason(choice.last) or "stop",
            stop_reason=choice.last.stop_reason if choice.last else None,
        )

    def _logprobs(self, entries: Sequence[TokenLogprobs] | None) -> ChatLogprobs | None:
        if not self._body.logprobs or entries is None:
            return None
        return chat_logprobs(self._service.tokens, entries, self._body.top_logprobs or 0)

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        chunk = ChatChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._target.model,
            choices=choices,
            system_fingerprint=self._target.fingerprint,
        )
        if self._include_usage:
            chunk.usage = self._usage.usage() if self._running_usage else None
        return chunk


def _chunk_choice(
    index: int,
    delta: ChatDelta,
    logprobs: ChatLogprobs | None = None,
    chunk: GenerationChunk | None = None,
) -> ChatChunkChoice:
    choice = ChatChunkChoice(
        index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason(chunk)
    )
    if chunk is not None and chunk.stop_reason is not None:
        choice.stop_reason = chunk.stop_reason
    return choice
