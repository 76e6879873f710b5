"""Answers of each family, split into text and calls, however they are cut."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest

from serving.tools.call_parser import CallParser
from serving.tools.formats import FORMATS

F, G = ("f", '{"a": [1, "}"]}'), ("g", "{}")


def read(
    family: str, pieces: Iterable[str], *, parallel: bool = True
) -> tuple[str, list[tuple[str, str]]]:
    """The text, and name and arguments of each call."""
    parser = CallParser(FORMATS[family], ("f", "g"), parallel)
    parts = [*map(parser.push, pieces), parser.finish()]
    calls: list[list[str]] = []
    for call in (call for part in parts for call in part.calls):
        if call.id is not None:
            assert call.name is not None
            assert call.index == len(calls)
            calls.append([call.name, ""])
        calls[call.index][1] += call.arguments
    return "".join(part.text for part in parts), [(name, text) for name, text in calls]


CASES = [
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": [1, "}"]}}\n</tool_call>', "", [F]),
    (
        "hermes",
        'I look.\n<tool_call>{"name": "f", "arguments": {"a": [1, "}"]}}</tool_call>\n'
        '<tool_call>\n{"arguments": {}, "name": "g"}\n</tool_call>\n',
        "I look.",
        [F, G],
    ),
    ("hermes", "1 < 2 and <tool is no marker ", "1 < 2 and <tool is no marker ", []),
    ("hermes", "<tool_call>nothing</tool_call> after", "<tool_call>nothing</tool_call> after", []),
    ("hermes", '<tool_call>\n{"nam', '<tool_call>\n{"nam', []),
    ("hermes", '<tool_call>\n{"name": "g"}\n</tool_call>', "", [G]),
    ("hermes", '<tool_call>{"name": "g", "arguments": "{}"}</tool_call>', "", [G]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a', "", [("f", '{"a')]),
    ("hermes", '{"name": "f", "arguments": {}}', '{"name": "f", "arguments": {}}', []),
    ("llama3_json", '{"name": "f", "parameters": {"a": [1, "}"]}}', "", [F]),
    (
        "llama3_json",
        '<|python_tag|>{"name": "f", "parameters": {"a": [1, "}"]}};'
        ' {"name": "g", "parameters": {}}',
        "",
        [F, G],
    ),
    ("llama3_json", "No { call }", "No { call }", []),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": [1, "}"]}}]', "", [F]),
    ("mistral", 'Hm.[TOOL_CALLS]f[ARGS]{"a": [1, "}"]}[TOOL_CALLS]g{}', "Hm.", [F, G]),
    ("mistral", "[TOOL_CALLS]just words", "[TOOL_CALLS]just words", []),
    ("json", '{"name": "f", "arguments": {"a": [1, "}"]}}', "", [F]),
    ("json", ' [{"name": "f", "parameters": {"a": [1, "}"]}}, {"name": "g"}]', "", [F, G]),
    ("json", '{"name": "h", "arguments": {}}', '{"name": "h", "arguments": {}}', []),
    ("json", '{"answer": 5}', '{"answer": 5}', []),
    ("json", "[1, 2]", "[1, 2]", []),
    ("json", "   ", "   ", []),
]


@pytest.mark.parametrize(("family", "answer", "text", "calls"), CASES)
def test_text_and_calls(family: str, answer: str, text: str, calls: list[tuple[str, str]]) -> None:
    assert read(family, [answer]) == (text, calls)
    assert read(family, answer) == (text, calls), "character by character"
    assert read(family, [answer[:7], answer[7:11], answer[11:]]) == (text, calls)


def test_arguments_come_as_they_are_written() -> None:
    parser = CallParser(FORMATS["hermes"], ("f",), True)
    [first] = parser.push('<tool_call>{"name": "f", "arguments": {"city": "Par').calls
    assert (first.name, first.arguments) == ("f", '{"city": "Par')
    assert first.id is not None
    [second] = parser.push('is"}}').calls
    assert (second.id, second.name, second.arguments) == (None, None, 'is"}')


def test_text_is_held_back_only_while_it_may_be_a_marker() -> None:
    parser = CallParser(FORMATS["hermes"], ("f",), True)
    assert parser.push("well <tool").text == "well"
    assert parser.push("s are").text == " <tools are"


def test_one_call_when_several_are_not_wanted() -> None:
    one = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert read("hermes", [one, one, "done"], parallel=False) == ("done", [("f", "{}")])


def test_ids() -> None:
    assert FORMATS["mistral"].call_id().isalnum()
    assert len(FORMATS["mistral"].call_id()) == 9
    assert FORMATS["hermes"].call_id() != FORMATS["hermes"].call_id()
    assert json.dumps(FORMATS["json"].call_id()).startswith('"call_')
