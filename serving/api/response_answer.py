"""Builds the answer to `/v1/responses`, whole or as events."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from pydantic import BaseModel

from serving.api.answers import finish_reason
from serving.conversation import Conversation
from serving.errors import ApiError
from serving.generation import Generation, PromptChunk
from serving.response_input import is_strict
from serving.schemas.responses import (
    IncompleteDetails,
    InputTokensDetails,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputText,
    OutputTokensDetails,
    ResponseEvent,
    ResponseFailure,
    ResponseObject,
    ResponsesRequest,
    ResponseUsage,
    Status,
)
from serving.tools.call_parser import AnswerPiece, CallPiece, is_whole
from serving.usage import UsageCounter


class ResponseAnswer:
    """One response: its items as they grow, and the events that tell of it.

    Args:
        body: the request.
        conversation: what it became.
    """

    def __init__(self, body: ResponsesRequest, conversation: Conversation) -> None:
        self._body = body
        self._model = conversation.target.model
        plan = conversation.plan
        self._parser = None if plan is None else plan.parser()
        self._usage = UsageCounter([conversation.prompt])
        self._id = f"resp_{uuid4().hex}"
        self._created = int(time.time())
        self._items: list[OutputItem] = []
        self._open: OutputItem | None = None
        self._cut_off = False
        self._number = 0

    async def read(self, generation: Generation) -> None:
        """Take the whole generation in.

        Raises:
            ApiError: the generation failed.
        """
        async with generation:
            async for piece in generation.pieces():
                self.events(piece)
        self._finish()

    def whole(self) -> ResponseObject:
        """The whole answer, once it was read."""
        return self._object("incomplete" if self._cut_off else "completed")

    def opening(self) -> Sequence[BaseModel]:
        """The response exists, and is on the way."""
        started = self._object("in_progress")
        return [
            self._event("response.created", response=started),
            self._event("response.in_progress", response=started),
        ]

    def events(self, piece: PromptChunk) -> Sequence[BaseModel]:
        """What one chunk adds."""
        self._usage.add(piece)
        chunk = piece.chunk
        reason = finish_reason(chunk)
        if self._parser is None:
            new = AnswerPiece([chunk.text])
        else:
            new = self._parser.push(chunk.text)
            if reason is not None:
                new.parts += self._parser.finish().parts
        self._cut_off = reason == "length"
        found: list[BaseModel] = []
        for part in new.parts:
            if isinstance(part, CallPiece):
                found += self._take_call(part)
            elif part:
                found += self._take_text(part)
        return found

    def closing(self) -> Sequence[BaseModel]:
        """The last item ends, and the response with it."""
        last = self._finish()
        status = "incomplete" if self._cut_off else "completed"
        return [*last, self._event(f"response.{status}", response=self._object(status))]

    def failure(self, error: ApiError) -> BaseModel:
        """The generation failed after it had begun."""
        if self._open is not None:
            self._open.status = "incomplete"
        response = self._object("failed")
        response.error = _as_failure(error)
        return self._event("response.failed", response=response)

    def _take_text(self, text: str) -> list[BaseModel]:
        found: list[BaseModel] = []
        if not isinstance(self._open, OutputMessage):
            found += self._close("completed")
            found += self._start_message()
        message = self._open
        if not isinstance(message, OutputMessage):
            raise TypeError("a message was started")
        message.content[0].text += text
        place = self._place(message) | {"content_index": 0}
        delta = self._event("response.output_text.delta", **place, delta=text, logprobs=[])
        return [*found, delta]

    def _start_message(self) -> list[BaseModel]:
        message = OutputMessage(id=f"msg_{uuid4().hex}", status="in_progress", content=[])
        found = [self._add(message)]
        message.content.append(OutputText(text=""))
        part = message.content[0].model_copy()
        place = self._place(message) | {"content_index": 0}
        return [*found, self._event("response.content_part.added", **place, part=part)]

    def _take_call(self, piece: CallPiece) -> list[BaseModel]:
        found: list[BaseModel] = []
        if piece.id is not None:
            found += self._close("completed")
            call = OutputCall(
                id=f"fc_{uuid4().hex}",
                status="in_progress",
                call_id=piece.id,
                name=piece.name or "",
                arguments="",
            )
            found.append(self._add(call))
        item = self._open
        if not isinstance(item, OutputCall):
            raise TypeError("a piece of a call came before its beginning")
        if piece.arguments:
            item.arguments += piece.arguments
            place, kind = self._place(item), "response.function_call_arguments.delta"
            found.append(self._event(kind, **place, delta=piece.arguments))
        return found

    def _finish(self) -> list[BaseModel]:
        """An answer without anything still has a message."""
        found = [] if self._items else self._start_message()
        return [*found, *self._close("incomplete" if self._cut_off else "completed")]

    def _add(self, item: OutputItem) -> ResponseEvent:
        self._items.append(item)
        self._open = item
        added = item.model_copy(deep=True)
        return self._event(
            "response.output_item.added", output_index=len(self._items) - 1, item=added
        )

    def _close(self, status: Status) -> list[BaseModel]:
        item, self._open = self._open, None
        if item is None:
            return []
        if isinstance(item, OutputCall):  # whatever became of the answer around it
            status = "completed" if is_whole(item.arguments) else "incomplete"
        item.status = status
        place = self._place(item)
        found: list[BaseModel] = []
        if isinstance(item, OutputMessage):
            part, inside = item.content[0], place | {"content_index": 0}
            found += [
                self._event("response.output_text.done", **inside, text=part.text, logprobs=[]),
                self._event("response.content_part.done", **inside, part=part),
            ]
        else:
            kind = "response.function_call_arguments.done"
            found.append(self._event(kind, **place, name=item.name, arguments=item.arguments))
        index = place["output_index"]
        return [*found, self._event("response.output_item.done", output_index=index, item=item)]

    def _place(self, item: OutputItem) -> dict[str, Any]:
        return {"item_id": item.id, "output_index": self._items.index(item)}

    def _event(self, kind: str, **fields: Any) -> ResponseEvent:
        event = ResponseEvent(type=kind, sequence_number=self._number, **fields)
        self._number += 1
        return event

    def _object(self, status: Any) -> ResponseObject:
        body = self._body
        ended = status in ("completed", "incomplete")
        cut_off = IncompleteDetails(reason="max_output_tokens") if status == "incomplete" else None
        choice = body.tool_choice or ("auto" if body.tools else "none")
        given = body.text.format if body.text is not None else None
        form = {"type": "text"} if given is None else given.model_dump(by_alias=True)
        return ResponseObject(
            id=self._id,
            created_at=self._created,
            status=status,
            incomplete_details=cut_off,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            metadata=body.metadata or {},
            model=self._model,
            output=[item.model_copy(deep=True) for item in self._items],
            parallel_tool_calls=body.parallel_tool_calls is not False,
            temperature=1.0 if body.temperature is None else body.temperature,
            text={"format": form},
            tool_choice=choice if isinstance(choice, str) else choice.model_dump(),
            tools=[tool.model_dump() | {"strict": is_strict(tool)} for tool in body.tools or ()],
            top_p=1.0 if body.top_p is None else body.top_p,
            usage=self._counts() if ended else None,
            user=body.user,
        )

    def _counts(self) -> ResponseUsage:
        usage = self._usage.usage()
        return ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(
                cached_tokens=usage.prompt_tokens_details.cached_tokens
            ),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(),
            total_tokens=usage.total_tokens,
        )


def _as_failure(error: ApiError) -> ResponseFailure:
    if error.status_code == 429:
        return ResponseFailure(code="rate_limit_exceeded", message=error.detail)
    if error.status_code in (400, 404):
        return ResponseFailure(code="invalid_prompt", message=error.detail)
    return ResponseFailure(code="server_error", message=error.detail)
