"""Answers of each family, split into text and calls, however they are cut."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serving.tools.call_parser import CallParser
from serving.tools.formats import FORMATS

F, G = ("f", '{"a": [1, "}"]}'), ("g", "{}")
CALLED = '<tool_call>{"name": "g"}</tool_call>'
NOPE = '{"name": "nope", "arguments": {}}'


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
    # Commas and brackets of calls are no text.
    ("json", '[{"name": "g", "arguments": {}}] Done.', "Done.", [G]),
    ("json", '[{"name": "g"}, {"name": "g"}] [1, 2]', "[1, 2]", [G, G]),
    ("json", '[{"name": "g"}]] and', "] and", [G]),
    ("llama3_json", '{"name": "g"}; {"name": "g"}; so', "so", [G, G]),
    ("mistral", 'ok [TOOL_CALLS][{"name": "g"}] tail', "ok tail", [G]),
    # The later value counts, as long as none went out.
    ("json", '{"name": "g", "arguments": {}, "parameters": {}}', "", [G]),
    ("json", '{"arguments": {"a": 1}, "parameters": {}, "name": "g"}', "", [G]),
    ("json", '{"parameters": "{}", "arguments": {"a": [1, "}"]}, "name": "f"}', "", [F]),
    ("json", '{"name": "g", "arguments": {"a": 1}, "parameters": {}}', "", [("g", '{"a": 1}')]),
    # No arguments, however that is written.
    ("json", '{"name": "g", "arguments": null}', "", [G]),
    ("json", '{"name": "g", "arguments": "null"}', "", [G]),
    ("json", '{"name": "g", "arguments": ""}', "", [G]),
    ("json", '{"arguments": null, "name": "g"}', "", [G]),
    ("json", '{"name": "f", "arguments": null, "parameters": {"a": [1, "}"]}}', "", [F]),
    # Functions that there are not.
    ("hermes", f"<tool_call>\n{NOPE}\n</tool_call>", f"<tool_call>\n{NOPE}\n</tool_call>", []),
    ("hermes", f"<tool_call>{NOPE}</tool_call>\n{CALLED}", f"<tool_call>{NOPE}</tool_call>", [G]),
    ("mistral", f"a [TOOL_CALLS][{NOPE}] b", f"a [TOOL_CALLS][{NOPE}] b", []),
    ("mistral", "[TOOL_CALLS]nope[ARGS]{}", "[TOOL_CALLS]nope[ARGS]{}", []),
    ("mistral", "[TOOL_CALLS]f words {}", "[TOOL_CALLS]f words {}", []),
    ("mistral", "[TOOL_CALLS]g[CALL_ID]a1b2c3d4e[ARGS]{}", "", [G]),
    ("llama3_json", f"<|python_tag|>{NOPE}", f"<|python_tag|>{NOPE}", []),
    ("json", f'[{{"name": "g"}}, {NOPE}]', f"{NOPE}]", [G]),
    # Space of what is no call, and of what is.
    ("hermes", "a <tool_call> b ", "a <tool_call> b ", []),
    ("hermes", " <tool_call>  <tool_call> b", " <tool_call>  <tool_call> b", []),
    ("hermes", "a <tool_call></tool_call>\n", "a <tool_call></tool_call>\n", []),
    ("hermes", f"a {CALLED} b {CALLED}\n", "a b", [G, G]),
    ("hermes", f" {CALLED}\n b ", "b ", [G]),
    # Calls that break off: text before their arguments, calls from there on.
    ("json", '{"name": "g", x', '{"name": "g", x', []),
    ("json", '{"name": "g", "arguments": nope}', '{"name": "g", "arguments": nope}', []),
    ("json", '{"arguments": {"a": ]}, "name": "g"}', '{"arguments": {"a": ]}, "name": "g"}', []),
    ("json", '{"name": "g", "arguments": {"a":  ]é🎉', "]é🎉", [("g", '{"a":  ')]),
    ("json", '{"name": "g", "arguments": {} é🎉', "é🎉", [G]),
    ("hermes", '<tool_call>{"name": "g", "arguments": {}\n</tool_call>b', "b", [G]),
    ("hermes", f'<tool_call>{{"oops {CALLED}', '<tool_call>{"oops', [G]),
    ("hermes", '<tool_call>{"name": "g"}\n</tool_c', "", [G]),
    # A string that no UTF-8 can hold, and more lists than Python's reader goes into.
    ("json", r'{"name": "g", "arguments": "\ud800"}', "", [("g", r'"\ud800"')]),
    ("json", f'{{"name": "g", "id": {"[" * 9999}{"]" * 9999}}}', "", [G]),
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


@pytest.mark.parametrize(
    ("family", "answer"),
    [
        ("hermes", f"{CALLED}\n{CALLED}\n"),
        ("llama3_json", '{"name": "g", "parameters": {}}; {"name": "f", "parameters": {}}'),
        ("mistral", '[TOOL_CALLS][{"name": "g", "arguments": {}}, {"name": "g"}]'),
        ("mistral", "[TOOL_CALLS]g[ARGS]{}[TOOL_CALLS]f[ARGS]{}"),
        ("json", '[{"name": "g"}, {"name": "f", "arguments": {}}]'),
    ],
)
def test_a_call_that_is_not_wanted_is_no_text_wherever_it_ends(family: str, answer: str) -> None:
    first = answer.index("}")
    while read(family, [answer[:first]], parallel=False)[1] != [G]:
        first += 1
    for end in range(first, len(answer) + 1):
        assert read(family, [answer[:end]], parallel=False) == ("", [G]), answer[:end]


FRAGMENTS = (
    *(marker for form in FORMATS.values() for marker in (form.opening, form.closing) if marker),
    *("<tool", "_call>", "</tool_", "[TOOL", "[ARGS]", "[CALL_ID]", "<|python", "f", "g", "nope"),
    *('{"name": "f", "arguments": {"a": [1, "}"]}}', '{"name": "g", "parameters": {}}', NOPE),
    *('{"name": "g"}', '{"arguments": {"a": 1}, "name": "f"}', '{"name": "f", ', '"name": "g"'),
    *('"arguments": ', '"parameters": ', '"arguments": {"a": ', '"arguments": null', '"x": 1.5e3'),
    *('"arguments": "{}"', '"{\\"a\\": 1}"', '"\\ud83c"', "f[ARGS]{", "g{}", "null", "true"),
    *("a b", ", ", "; ", *'"\\{}[],;: \n\u2003é🎉'),
)


@pytest.mark.parametrize("family", FORMATS)
@given(
    parts=st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=16),
    cuts=st.lists(st.integers(0, 300), max_size=12),
    parallel=st.booleans(),
)
@example(['{"name": "g", "arguments": {"a":  ]', "é🎉"], [], True)
def test_the_pieces_of_an_answer_do_not_matter(
    family: str, parts: list[str], cuts: list[int], parallel: bool
) -> None:
    answer = "".join(parts)
    whole = text, calls = read(family, [answer], parallel=parallel)
    assert read(family, answer, parallel=parallel) == whole, "character by character"
    assert read(family, parts, parallel=parallel) == whole
    places = sorted({0, *cuts})
    pieces = [answer[a:b] for a, b in zip(places, [*places[1:], None], strict=True)]
    assert read(family, pieces, parallel=parallel) == whole
    assert {name for name, _ in calls} <= {"f", "g"}
    assert all(arguments for _, arguments in calls)
    if not calls:
        assert text == answer, "what is no call is text, to the letter"


def test_any_name_that_a_request_may_give_a_function_can_be_written_without_an_object() -> None:
    for name in "/a.b:c-d_e/1", "_" * 128:
        parser = CallParser(FORMATS["mistral"], (name,), True)
        [call] = parser.push(f"[TOOL_CALLS]{name}[ARGS]{{}}").calls
        assert (call.name, call.arguments) == (name, "{}")


def test_ids() -> None:
    assert FORMATS["mistral"].call_id().isalnum()
    assert len(FORMATS["mistral"].call_id()) == 9
    assert FORMATS["hermes"].call_id() != FORMATS["hermes"].call_id()
    assert json.dumps(FORMATS["json"].call_id()).startswith('"call_')
