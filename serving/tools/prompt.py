"""What a model reads of tools and calls: through its chat template, or in plain words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_INTRODUCTION = """\
You can call functions. To call one, answer with nothing but a JSON object of this form:
{"name": "<function>", "arguments": {<its arguments>}}
For several calls, answer with a list of such objects. The functions are:
"""

Spoken = Mapping[str, Any]


def in_plain_words(messages: Sequence[Spoken], tools: Sequence[Spoken]) -> list[dict[str, Any]]:
    """A conversation with tools for a template that knows none.

    Args:
        messages: with `tool_calls`, and of the role `tool`, as templates get them.
        tools: the functions, in OpenAI's form.

    Returns:
        Messages of the roles system, user and assistant, with text alone.
    """
    names: dict[str, str] = {}
    plain = [_plain(message, names) for message in messages]
    if not tools:
        return plain
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    introduction = _INTRODUCTION + "\n".join(lines)
    if plain and plain[0]["role"] == "system":
        first = {**plain[0], "content": f"{plain[0]['content']}\n\n{introduction}"}
        return [first, *plain[1:]]
    return [{"role": "system", "content": introduction}, *plain]


def _plain(message: Spoken, names: dict[str, str]) -> dict[str, Any]:
    """One message; `names` remembers which function each call was of."""
    if message["role"] == "tool":
        name = names.get(message.get("tool_call_id", ""), message.get("name", "the function"))
        return {"role": "user", "content": f"{name} returned: {message['content']}"}
    if "tool_calls" not in message:
        return dict(message)
    calls = [call["function"] for call in message["tool_calls"]]
    names |= {call["id"]: call["function"]["name"] for call in message["tool_calls"]}
    written = json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)
    text = "\n".join(filter(None, [message["content"], written]))
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": text}
