"""A request to `/v1/responses` as the chat request that it stands for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from serving.errors import ApiError, invalid
from serving.schemas.chat import ChatRequest
from serving.schemas.responses import (
    CallItem,
    CallOutputItem,
    Content,
    FlatChoice,
    FlatSchemaFormat,
    FlatTool,
    InputItem,
    ResponsesRequest,
)
from serving.tools.grammar import can_be_enforced

# Chat's field -> the field of a response request that it was made from.
_FIELDS = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
}


def as_chat(body: ResponsesRequest) -> ChatRequest:
    """The chat request whose answer is the response's.

    Raises:
        ApiError: 400: as messages the input is beyond what a chat request may hold.
    """
    messages: list[dict[str, Any]] = []
    if body.instructions is not None:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        messages.append({"role": "user", "content": body.input})
    else:
        messages += _messages(body.input)
    fields = {
        "model": body.model,
        "mask": body.mask,
        "messages": messages,
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "stream": body.stream,
        "response_format": _format(body),
        "tools": None if body.tools is None else [_tool(tool) for tool in body.tools],
        "tool_choice": _choice(body),
        "parallel_tool_calls": body.parallel_tool_calls,
        "cache_salt": body.cache_salt,
        "user": body.user,
    }
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        # Every field is valid by itself; only messages can grow, or calls in one of them.
        first = error.errors()[0]
        raise invalid(f"input: as messages of a conversation: {first['msg']}", "input") from error


def in_words_of_responses(error: ApiError) -> ApiError:
    """A refusal of the chat request, naming the fields that the client sent."""
    for chat, own in _FIELDS.items():
        if error.param is not None and error.param.partition("[")[0] == chat:
            error.param = error.param.replace(chat, own, 1)
        # Not inside quotes, where names are the client's.
        error.detail = re.sub(rf"(?<![\w'\"]){chat}(?![\w'\"])", own, error.detail)
    if error.param is not None:
        error.param = error.param.replace("].function.", "].")
    error.detail = error.detail.replace("].function.", "].")
    return error


def _messages(items: Sequence[InputItem]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for item in items:
        if isinstance(item, CallOutputItem):
            text = _text(item.output)
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": text})
        elif isinstance(item, CallItem):
            _add_call(messages, item)
        else:
            messages.append({"role": item.role, "content": _text(item.content)})
    return messages


def _add_call(messages: list[dict[str, Any]], item: CallItem) -> None:
    """Calls belong to the assistant's message before them, which they make if there is none."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    function = {"name": item.name, "arguments": item.arguments}
    call = {"id": item.call_id, "type": "function", "function": function}
    messages[-1].setdefault("tool_calls", []).append(call)


def _text(content: Content) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _format(body: ResponsesRequest) -> dict[str, Any] | None:
    given = body.text.format if body.text is not None else None
    if given is None:
        return None
    if not isinstance(given, FlatSchemaFormat):
        return {"type": given.type}
    schema = given.model_dump(by_alias=True, exclude_none=True, exclude={"type"})
    return {"type": "json_schema", "json_schema": schema}


def _tool(tool: FlatTool) -> dict[str, Any]:
    function = tool.model_dump(exclude_none=True, exclude={"type"}) | {"strict": is_strict(tool)}
    return {"type": "function", "function": function}


def is_strict(tool: FlatTool) -> bool:
    """Whether calls are held to the schema: unlike in chat, also if the request says nothing of it.

    As OpenAI's, where the schema allows it (https://platform.openai.com/docs/guides/
    function-calling, "Strict mode").
    """
    if tool.strict is not None:
        return tool.strict
    return can_be_enforced(tool.parameters or {})


def _choice(body: ResponsesRequest) -> str | dict[str, Any] | None:
    if isinstance(body.tool_choice, FlatChoice):
        return {"type": "function", "function": {"name": body.tool_choice.name}}
    return body.tool_choice
