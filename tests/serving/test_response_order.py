"""Items of a response where one chunk brings the end of one and the beginning of the next."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from engines.base import GenerationChunk
from serving.api.response_answer import ResponseAnswer
from serving.generation import PromptChunk
from serving.schemas.responses import ResponsesRequest
from serving.tools.call_parser import CallParser
from serving.tools.formats import FORMATS

CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
ANSWER = f"Now. {CALL} Then {CALL}{CALL} done"


def items(pieces: list[str]) -> list[tuple[str, str]]:
    """Type and text or arguments of each item."""
    plan = SimpleNamespace(parser=lambda: CallParser(FORMATS["hermes"], ("f",), True))
    conversation: Any = SimpleNamespace(target=SimpleNamespace(model="m"), plan=plan, prompt=(1,))
    answer = ResponseAnswer(ResponsesRequest(model="m", input="x"), conversation)
    for number, piece in enumerate(pieces, 1):
        last = "stop" if number == len(pieces) else None
        answer.events(PromptChunk(0, GenerationChunk(0, piece, (1,), finish_reason=last)))
    answer.closing()
    return [
        (item.type, item.content[0].text if item.type == "message" else item.arguments)
        for item in answer.whole().output
    ]


def test_items_come_in_the_order_in_which_they_were_written() -> None:
    call = ("function_call", '{"a": 1}')
    expected = [
        ("message", "Now."),
        call,
        ("message", " Then"),
        call,
        call,
        ("message", " done"),
    ]
    assert items(list(ANSWER)) == expected, "character by character"
    for place in range(len(ANSWER)):
        assert items([ANSWER[:place], ANSWER[place:]]) == expected, ANSWER[:place]
