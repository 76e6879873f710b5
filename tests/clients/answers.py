"""What the server answered, read from the wire, and what must hold of every answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import jsonschema

from tests.clients.tee import Exchange

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


@dataclass
class Call:
    """A call of a function; `arguments` is JSON."""

    name: str = ""
    arguments: str = ""


@dataclass
class Answer:
    """One choice, however it came.

    Attributes:
        text: what was said.
        calls: functions that were called.
        finish: why it ended, in the words of chat completions.
        usage: prompt and completion tokens; None if a stream told none.
    """

    text: str = ""
    calls: list[Call] = field(default_factory=list)
    finish: str | None = None
    usage: tuple[int, int] | None = None


def read_answer(exchange: Exchange) -> Answer:
    """The first choice of a chat completion, a completion or a response."""
    if exchange.path == RESPONSES:
        return _response(exchange)
    answer = Answer()
    for part in exchange.events if exchange.streamed else [exchange.answer]:
        for choice in part["choices"]:
            if choice["index"] == 0:
                _add_choice(answer, choice)
        if usage := part.get("usage"):
            answer.usage = (usage["prompt_tokens"], usage["completion_tokens"])
    return answer


def _add_choice(answer: Answer, choice: dict[str, Any]) -> None:
    said = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
    answer.text += said.get("content") or ""
    answer.finish = choice["finish_reason"] or answer.finish
    for place, call in enumerate(said.get("tool_calls") or ()):
        index = call.get("index", place)
        if index == len(answer.calls):
            answer.calls.append(Call())
        answer.calls[index].name += call["function"].get("name") or ""
        answer.calls[index].arguments += call["function"].get("arguments") or ""


def _response(exchange: Exchange) -> Answer:
    if exchange.streamed:
        final = exchange.events[-1]["response"]
        pieces = [e for e in exchange.events if e["type"] == "response.output_text.delta"]
    else:
        final, pieces = exchange.answer, []
    answer = Answer(usage=(final["usage"]["input_tokens"], final["usage"]["output_tokens"]))
    for item in final["output"]:
        if item["type"] == "message":
            answer.text += "".join(part["text"] for part in item["content"])
        else:
            answer.calls.append(Call(item["name"], item["arguments"]))
    assert not pieces or "".join(piece["delta"] for piece in pieces) == answer.text
    cut = final["status"] == "incomplete"
    answer.finish = "length" if cut else "tool_calls" if answer.calls else "stop"
    return answer


def count_tokens(server: str, **body: Any) -> int:
    """What `/tokenize` counts."""
    answer = httpx.post(f"{server}/tokenize", json=body, timeout=60).raise_for_status()
    return int(answer.json()["count"])


def check_usage(exchange: Exchange, server: str) -> None:
    """The usage of an answer is what `/tokenize` counts of its prompt and of its text.

    A constraint may lead to other tokens than those that its text is split into, so that of
    constrained answers the prompt alone is counted.
    """
    answer = read_answer(exchange)
    if answer.usage is None:
        return
    prompt, completion = answer.usage
    assert prompt == prompt_tokens(exchange, server), exchange.body
    free = not answer.calls and not _constrained(exchange.body)
    if free and exchange.path != COMPLETIONS:
        text = count_tokens(server, prompt=answer.text, add_special_tokens=False)
        end = answer.finish == "stop"  # the end of the turn is a token, too
        # A text may have been said in smaller pieces than it is split into, even without sampling:
        # agents' prompts hold random ids, which a model copies letter by letter.
        assert text + end <= completion <= len(answer.text.encode()) + end, answer


def _constrained(body: dict[str, Any]) -> bool:
    form = body.get("response_format") or (body.get("text") or {}).get("format") or {}
    return form.get("type", "text") != "text"


def prompt_tokens(exchange: Exchange, server: str) -> int:
    """Tokens of a request's prompt, counted by `/tokenize`."""
    body = exchange.body
    if exchange.path == COMPLETIONS:
        prompts = body["prompt"]
        listed = isinstance(prompts, list) and isinstance(prompts[0], str | list)
        return sum(
            len(prompt) if isinstance(prompt, list) else count_tokens(server, prompt=prompt)
            for prompt in (prompts if listed else [prompts])
        )
    if exchange.path == RESPONSES:
        messages, tools = _messages(body), [_nested(tool) for tool in body.get("tools") or ()]
    else:
        messages, tools = body["messages"], body.get("tools") or []
    shown = {"tools": tools} if tools and body.get("tool_choice") != "none" else {}
    return count_tokens(server, messages=messages, **shown)


def _messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation of a request to `/v1/responses`, as messages of a chat."""
    given = body["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    messages: list[dict[str, Any]] = []
    if body.get("instructions"):
        messages.append({"role": "system", "content": body["instructions"]})
    for item in items:
        match item.get("type", "message"):
            case "function_call":
                function = {"name": item["name"], "arguments": item["arguments"]}
                call = {"id": item["call_id"], "type": "function", "function": function}
                if messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": None, "tool_calls": []})
                messages[-1].setdefault("tool_calls", []).append(call)
            case "function_call_output":
                result = {"role": "tool", "tool_call_id": item["call_id"]}
                messages.append({**result, "content": _text(item["output"])})
            case _:
                messages.append({"role": item["role"], "content": _text(item["content"])})
    return messages


def _text(content: str | Sequence[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _nested(tool: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}


def check_calls(exchange: Exchange) -> None:
    """Calls that the request demanded are there, and their arguments fit the schema."""
    body = exchange.body
    choice = body.get("tool_choice") or "auto"
    if choice in ("auto", "none"):
        return
    answer = read_answer(exchange)
    assert answer.calls, f"no call, though tool_choice is {choice}: {answer}"
    tools = [tool.get("function", tool) for tool in body["tools"]]
    schemas = {tool["name"]: tool.get("parameters") or {} for tool in tools}
    for call in answer.calls:
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])
    if isinstance(choice, dict):
        wanted = choice.get("function", choice)["name"]
        assert [call.name for call in answer.calls] == [wanted]


def check_streams(exchanges: Sequence[Exchange]) -> None:
    """A request that was made both ways got the same answer both ways."""
    whole = {_key(one): read_answer(one) for one in exchanges if not one.streamed}
    for one in exchanges:
        if one.streamed and _key(one) in whole:
            said, alone = read_answer(one), whole[_key(one)]
            assert (said.text, said.calls, said.finish) == (alone.text, alone.calls, alone.finish)


def _key(exchange: Exchange) -> str:
    body = {k: v for k, v in exchange.body.items() if k not in ("stream", "stream_options")}
    return json.dumps([exchange.path, body], sort_keys=True)
