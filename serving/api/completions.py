"""`POST /v1/completions`."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from engines.base import GenerationChunk, TokenLogprobs
from engines.text import TextStream
from serving.api.answers import STREAMED, finish_reason, whole_response
from serving.auth import ApiRoute
from serving.errors import ApiError
from serving.event_frame import EventFrame
from serving.generation import Generation, PromptChunk
from serving.logprob_limit import limit_logprobs
from serving.names import ResolvedModel
from serving.sampling import constraint_field, to_sampling
from serving.schemas.common import PromptLogprobs, Usage
from serving.schemas.completions import (
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
    CompletionResponse,
)
from serving.service import Service, ServiceDep
from serving.streaming import EventStream
from serving.tokens import completion_logprobs, prompt_logprobs
from serving.usage import UsageCounter

router = APIRouter(route_class=ApiRoute, tags=["generation"])

DEFAULT_MAX_TOKENS = 16

TokenIds = tuple[int, ...]


@router.post("/v1/completions", response_model=CompletionResponse, responses=STREAMED)
async def create_completion(
    body: CompletionRequest, http: Request, service: ServiceDep
) -> Response:
    """Continue one or several texts."""
    target = service.names.resolve(body.model, body.mask)
    choices = (body.n or 1) * (len(body.prompt) if _is_list_of_prompts(body) else 1)
    service.admission.check(choices, "n")
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    shown = [body.prompt_logprobs, body.logprobs if body.echo else None]
    sampling = to_sampling(
        body,
        max_tokens=max_tokens,
        logprobs=body.logprobs,
        prompt_logprobs=max((k for k in shown if k is not None), default=None),
        vocab_size=service.vocab_size,
        any_whitespace=service.settings.json_whitespace == "any",
    )
    await service.constraints.check(sampling.structured, constraint_field(body))
    ticket = service.admission.admit(choices, "n")
    try:
        special = body.add_special_tokens is not False
        prompts = await service.prompts.completion(
            body.prompt, add_special_tokens=special, scores_only=max_tokens == 0
        )
        asked = None if body.max_tokens is None else "max_tokens"
        service.prompts.check_room(prompts, max_tokens, asked)
        sampling = limit_logprobs(
            sampling,
            prompts,
            streamed=bool(body.stream),
            context_length=service.context_length,
            limit=service.settings.max_logprob_entries,
            param="logprobs" if body.prompt_logprobs is None else "prompt_logprobs",
        )
        starts = (
            await service.prompts.token_starts(body.prompt, prompts, add_special_tokens=special)
            if body.echo and body.logprobs is not None
            else []
        )
        generation = service.generation(http, ticket, target, prompts, sampling, body.cache_salt)
    except BaseException:
        ticket.release()
        raise
    answer = CompletionAnswer(service, body, target, prompts, starts)
    if body.stream:
        return EventStream(generation, answer, service.settings.keep_alive_interval)
    await answer.read(generation)
    return await whole_response(answer.whole, answer.logprob_rows)


def _is_list_of_prompts(body: CompletionRequest) -> bool:
    return isinstance(body.prompt, list) and not isinstance(body.prompt[0], int)


@dataclass
class _Choice:
    """What one choice has so far, of tokens only those whose log-probs are not shown yet.

    Attributes:
        stream: decodes it, to know where its tokens begin.
        begin: where its text begins in the text that is shown: behind the prompt, or at 0.
        end: where that text ends so far.
    """

    stream: TextStream
    begin: int
    end: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    last: GenerationChunk | None = None

    def take(self, chunk: GenerationChunk, with_tokens: bool) -> None:
        """Take a chunk in; its tokens too, if they are to be shown."""
        self.end += len(chunk.text)
        self.last = chunk
        if not with_tokens:
            return
        for token_id in chunk.token_ids:
            self.starts.append(self.begin + self.stream.position)
            self.stream.push(token_id)
        self.token_ids += chunk.token_ids
        self.logprobs += chunk.logprobs or ()

    def settled(self) -> tuple[list[int], list[int], list[TokenLogprobs | None]]:
        """Take out the tokens of which it is known where they begin: ids, places, log-probs.

        A token behind the text so far may belong to a stop string, which the text ends before, or
        to more text that is held back until that is decided.
        """
        ended = self.last is not None and self.last.finish_reason is not None
        count = len(self.starts) if ended else bisect_right(self.starts, self.end)
        found = (
            self.token_ids[:count],
            [min(start, self.end) for start in self.starts[:count]],
            self.logprobs[:count],
        )
        del self.token_ids[:count], self.starts[:count], self.logprobs[:count]
        return found


class CompletionAnswer:
    """Builds the answer, whole or as chunks.

    Args:
        service: the engine and its tokenizer.
        body: the request.
        target: the model and mask that answer.
        prompts: token ids of the prompts.
        starts: where in each prompt's text its tokens begin; empty unless that is to be shown.
    """

    def __init__(
        self,
        service: Service,
        body: CompletionRequest,
        target: ResolvedModel,
        prompts: Sequence[TokenIds],
        starts: Sequence[Sequence[int]],
    ) -> None:
        self._service = service
        self._body = body
        self._target = target
        self._prompts = prompts
        self._n = body.n or 1
        self._usage = UsageCounter(prompts, body.stream_options)
        self._starts = starts
        self._echoed = [self._prompt_text(i) for i in range(len(prompts))] if body.echo else []
        begins = [len(text) for text in self._echoed] or [0] * len(prompts)
        self._choices = [
            _Choice(service.engine.codec.stream(prompt), begin, begin)
            for prompt, begin in zip(prompts, begins, strict=True)
            for _ in range(self._n)
        ]
        self._prompt_entries: dict[int, tuple[TokenLogprobs | None, ...]] = {}
        self._id = f"cmpl-{uuid4().hex}"
        self._created = int(time.time())
        plain = body.logprobs is None and not self._usage.in_chunks
        self._frame = EventFrame(self._response([], None)) if plain else None

    async def read(self, generation: Generation) -> None:
        """Take the whole generation in.

        Raises:
            ApiError: the generation failed.
        """
        async with generation:
            async for piece in generation.pieces():
                new = piece.chunk
                choice = self._choices[self._add(piece)]
                choice.text += new.text
                choice.take(new, self._body.logprobs is not None)

    @property
    def logprob_rows(self) -> int:
        """Tokens whose log-probs the answer shows."""
        shown = sum(len(choice.logprobs) for choice in self._choices)
        return shown + self._n * sum(map(len, self._prompt_entries.values()))

    def whole(self) -> CompletionResponse:
        """The whole answer, once it was read."""
        choices = [self._finished(index, choice) for index, choice in enumerate(self._choices)]
        return self._response(choices, self._usage.usage())

    def opening(self) -> Sequence[BaseModel]:
        """A completion stream starts with its first token."""
        return ()

    def events(self, piece: PromptChunk) -> Sequence[BaseModel | bytes]:
        """The event for one chunk."""
        index, new = self._add(piece), piece.chunk
        choice = self._choices[index]
        first = choice.last is None
        choice.take(new, self._body.logprobs is not None)
        text, token_ids, starts, entries = self._with_echo(
            piece.prompt, new.text, *choice.settled(), first
        )
        shown = new.token_ids if self._body.logprobs is None else token_ids
        if not (text or shown or new.finish_reason):
            return ()
        if self._frame is not None:
            plain = {
                "index": index,
                "text": text,
                "logprobs": None,
                "finish_reason": finish_reason(new),
                "stop_reason": new.stop_reason,
            }
            return [self._frame.event(plain)]
        event = CompletionChoice(
            index=index,
            text=text,
            logprobs=self._logprobs(entries, token_ids, starts),
            finish_reason=finish_reason(new),
            stop_reason=new.stop_reason,
        )
        return [self._response([event], self._usage.usage() if self._usage.in_chunks else None)]

    def failure(self, error: ApiError) -> None:
        """A failure is the error's own body."""

    def closing(self) -> Sequence[BaseModel]:
        """The token counts, if they were asked for."""
        return [self._response([], self._usage.usage())] if self._usage.at_end else ()

    def _add(self, piece: PromptChunk) -> int:
        """Count a chunk; the number of its choice."""
        if piece.chunk.prompt_logprobs is not None:
            self._prompt_entries[piece.prompt] = piece.chunk.prompt_logprobs
        self._usage.add(piece)
        return piece.prompt * self._n + piece.chunk.index

    def _finished(self, index: int, choice: _Choice) -> CompletionChoice:
        prompt = index // self._n
        text, token_ids, starts, entries = self._with_echo(
            prompt, choice.text, *choice.settled(), True
        )
        scored: PromptLogprobs | None = None
        if self._body.prompt_logprobs is not None:
            scored = prompt_logprobs(
                self._service.tokens, self._prompt_entries[prompt], self._body.prompt_logprobs
            )
        return CompletionChoice(
            index=index,
            text=text,
            logprobs=self._logprobs(entries, token_ids, starts),
            finish_reason=finish_reason(choice.last),
            stop_reason=choice.last.stop_reason if choice.last else None,
            prompt_logprobs=scored,
        )

    def _with_echo(
        self,
        prompt: int,
        text: str,
        token_ids: Sequence[int],
        starts: Sequence[int],
        entries: Sequence[TokenLogprobs | None],
        first: bool,
    ) -> tuple[str, Sequence[int], Sequence[int], Sequence[TokenLogprobs | None]]:
        """Put the prompt in front, if this is the first piece and it was asked for."""
        if not (self._body.echo and first):
            return text, token_ids, starts, entries
        if self._body.logprobs is not None:
            entries = (*self._prompt_entries[prompt], *entries)
            starts = (*self._starts[prompt], *starts)
        return self._echoed[prompt] + text, (*self._prompts[prompt], *token_ids), starts, entries

    def _prompt_text(self, prompt: int) -> str:
        given = self._body.prompt
        if isinstance(given, str):
            return given
        item = given[prompt] if _is_list_of_prompts(self._body) else given
        if isinstance(item, str):
            return item
        return self._service.engine.codec.decode(self._prompts[prompt], skip_special_tokens=False)

    def _logprobs(
        self,
        entries: Sequence[TokenLogprobs | None],
        token_ids: Sequence[int],
        starts: Sequence[int],
    ) -> CompletionLogprobs | None:
        if self._body.logprobs is None:
            return None
        return completion_logprobs(
            self._service.tokens, entries, token_ids, self._body.logprobs, starts
        )

    def _response(self, choices: list[CompletionChoice], usage: Usage | None) -> CompletionResponse:
        answer = CompletionResponse(
            id=self._id,
            object="text_completion",
            created=self._created,
            model=self._target.model,
            choices=choices,
            system_fingerprint=self._target.fingerprint,
        )
        if usage is not None or self._usage.at_end:
            answer.usage = usage
        return answer
