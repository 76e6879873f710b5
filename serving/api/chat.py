"""`POST /v1/chat/completions`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal
from uuid import uuid4

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from engines.base import GenerationChunk, TokenLogprobs
from serving.api.answers import STREAMED, finish_reason, whole_response
from serving.auth import ApiRoute
from serving.conversation import Conversation, start_conversation
from serving.errors import ApiError
from serving.event_frame import EventFrame
from serving.generation import Generation, PromptChunk
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
from serving.schemas.tools import FunctionCall, FunctionCallDelta, ToolCall, ToolCallDelta
from serving.service import Service, ServiceDep
from serving.streaming import EventStream
from serving.tokens import chat_logprobs, prompt_logprobs
from serving.tools.call_parser import AnswerPiece, CallPiece, is_whole
from serving.tools.tooling import ToolPlan
from serving.usage import UsageCounter

router = APIRouter(route_class=ApiRoute, tags=["generation"])


@router.post("/v1/chat/completions", response_model=ChatResponse, responses=STREAMED)
async def create_chat_completion(body: ChatRequest, http: Request, service: ServiceDep) -> Response:
    """Answer a conversation."""
    conversation = await start_conversation(body, http, service)
    answer = ChatAnswer(service, body, conversation)
    if body.stream:
        return EventStream(conversation.generation, answer, service.settings.keep_alive_interval)
    await answer.read(conversation.generation)
    return await whole_response(answer.whole, answer.logprob_rows)


class _Choice:
    """What one choice has so far."""

    def __init__(self, plan: ToolPlan | None) -> None:
        self.text = ""
        self.logprobs: list[TokenLogprobs] = []
        self.calls: list[ToolCall] = []
        self.last: GenerationChunk | None = None
        self._plan = plan
        self._parser = plan.parser() if plan else None

    def take(self, chunk: GenerationChunk) -> AnswerPiece:
        """Take a chunk in; what is new of the text and the calls."""
        self.last = chunk
        self.logprobs.extend(chunk.logprobs or ())
        if self._parser is None:
            piece = AnswerPiece([chunk.text])
        else:
            piece = self._parser.push(chunk.text)
            if chunk.finish_reason is not None:
                piece.parts += self._parser.finish().parts
        self.text += piece.text
        for call in piece.calls:
            if call.id is not None:
                function = FunctionCall(name=call.name or "", arguments="")
                self.calls.append(ToolCall(id=call.id, type="function", function=function))
            self.calls[call.index].function.arguments += call.arguments
        return piece

    @property
    def finish_reason(self) -> Literal["stop", "length", "tool_calls"] | None:
        """Why the choice ended, once it has."""
        reason = finish_reason(self.last)
        # As OpenAI's: a call that the request named ends with "stop".
        named = self._plan is not None and self._plan.mode == "named"
        if reason != "stop" or named or not self.calls:
            return reason
        # Clients read the arguments at "tool_calls": a call that was cut off must not say so.
        return "tool_calls" if is_whole(self.calls[-1].function.arguments) else "stop"


class ChatAnswer:
    """Builds the answer, whole or as chunks."""

    def __init__(self, service: Service, body: ChatRequest, conversation: Conversation) -> None:
        self._service = service
        self._body = body
        self._target = conversation.target
        self._n = body.n or 1
        self._choices = [_Choice(conversation.plan) for _ in range(self._n)]
        self._with_tools = conversation.plan is not None
        self._prompt_entries: tuple[TokenLogprobs | None, ...] = ()
        self._usage = UsageCounter([conversation.prompt], body.stream_options)
        self._id = f"chatcmpl-{uuid4().hex}"
        self._created = int(time.time())
        plain = not (self._with_tools or body.logprobs or self._usage.in_chunks)
        self._frame = EventFrame(self._chunk([])) if plain else None

    async def read(self, generation: Generation) -> None:
        """Take the whole generation in.

        Raises:
            ApiError: the generation failed.
        """
        async with generation:
            async for piece in generation.pieces():
                self._usage.add(piece)
                self._choices[piece.chunk.index].take(piece.chunk)
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
            prompt_logprobs=None,
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

    def events(self, piece: PromptChunk) -> Sequence[BaseModel | bytes]:
        """The event for one chunk."""
        self._usage.add(piece)
        new = piece.chunk
        choice = self._choices[new.index]
        part = choice.take(new)
        if not (new.text or new.token_ids or new.finish_reason):
            return ()
        if self._frame is not None:
            return [self._frame.event(_plain_choice(new.index, part.text, choice))]
        entries = self._logprobs(new.logprobs)
        held = self._with_tools and not (part.text or part.calls)
        if held and entries is None and new.finish_reason is None:
            return ()
        delta = ChatDelta(content=part.text) if new.token_ids and not held else ChatDelta()
        if part.calls:
            delta = ChatDelta(tool_calls=[_call_delta(call) for call in part.calls])
            if part.text:
                delta.content = part.text
        return [self._chunk([_chunk_choice(new.index, delta, entries, choice)])]

    def closing(self) -> Sequence[BaseModel]:
        """The token counts, if they were asked for."""
        if not self._usage.at_end:
            return ()
        chunk = self._chunk([])
        chunk.usage = self._usage.usage()
        return [chunk]

    def failure(self, error: ApiError) -> None:
        """A failure is the error's own body."""

    def _finished(self, index: int, choice: _Choice) -> ChatChoice:
        message = AssistantMessage(role="assistant", content=choice.text, refusal=None)
        if choice.calls:
            message.content = choice.text or None
            message.tool_calls = choice.calls
        return ChatChoice(
            index=index,
            message=message,
            logprobs=self._logprobs(choice.logprobs),
            finish_reason=choice.finish_reason or "stop",
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
        if self._usage.at_end:
            chunk.usage = self._usage.usage() if self._usage.in_chunks else None
        return chunk


def _chunk_choice(
    index: int,
    delta: ChatDelta,
    logprobs: ChatLogprobs | None = None,
    choice: _Choice | None = None,
) -> ChatChunkChoice:
    reason = choice.finish_reason if choice else None
    chunk = ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=reason)
    if choice is not None and choice.last is not None and choice.last.stop_reason is not None:
        chunk.stop_reason = choice.last.stop_reason
    return chunk


def _plain_choice(index: int, text: str, choice: _Choice) -> dict[str, object]:
    """What a chunk without calls and log-probs adds."""
    last = choice.last
    fields: dict[str, object] = {
        "index": index,
        "delta": {"content": text} if last is not None and last.token_ids else {},
        "logprobs": None,
        "finish_reason": choice.finish_reason,
    }
    if last is not None and last.stop_reason is not None:
        fields["stop_reason"] = last.stop_reason
    return fields


def _call_delta(call: CallPiece) -> ToolCallDelta:
    if call.id is None:
        function = FunctionCallDelta(arguments=call.arguments)
        return ToolCallDelta(index=call.index, function=function)
    function = FunctionCallDelta(name=call.name, arguments=call.arguments)
    return ToolCallDelta(index=call.index, id=call.id, type="function", function=function)
