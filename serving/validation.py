"""Pydantic's validation errors in one sentence that names the field, the value and the limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MAX_ERRORS = 5
MAX_ECHO_CHARS = 80
MAX_PARAM_CHARS = 200

Path = tuple[str | int, ...]

# Fields of OpenAI's API that this server knows and does not implement.
NOT_IMPLEMENTED = {
    "chat_template": "templates come from the model directory only",
    "audio": "audio output is not supported",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "modalities": "only text is supported",
    "moderation": "moderation is not supported",
    "prediction": "predicted outputs are not supported",
    "prompt_cache_options": "the prefix cache has no options; use cache_salt to keep users apart",
    "reasoning_effort": "reasoning effort is not supported",
    "store": "completions are not stored",
    "background": "responses are answered at once",
    "conversation": "responses are not kept; send the whole conversation as input",
    "previous_response_id": "responses are not kept; send the whole conversation as input",
    "truncation": "a conversation that does not fit is refused; shorten it",
    "suffix": "fill-in-the-middle is not supported",
    "verbosity": "verbosity is not supported",
    "web_search_options": "web search is not supported",
}


def describe_validation_error(errors: Sequence[Any], body: Any) -> tuple[str, str | None, str]:
    """What is wrong with a request body.

    Returns:
        The message, the field at fault (`messages[0].content`), and the error code.
    """
    if errors[0]["type"] == "json_invalid":
        return f"the body is not valid JSON: {errors[0]['ctx']['error']}", None, "invalid_json"
    if not isinstance(body, dict):
        return (
            "the body must be a JSON object, sent with the header Content-Type: application/json",
            None,
            "invalid_json",
        )
    worst = _one_per_field(errors, body)
    parts = [_describe(error, path) for error, path in worst[:MAX_ERRORS]]
    if len(worst) > MAX_ERRORS:
        parts.append(f"and {len(worst) - MAX_ERRORS} more")
    first, path = worst[0]
    return "; ".join(parts), field_name(path), _code(first)


def _one_per_field(errors: Sequence[Any], body: dict[str, Any]) -> list[tuple[Any, Path]]:
    """Of every field the error that tells most, with its path.

    Where a field may have several forms, pydantic tells what is wrong with each of them; the form
    that was meant is the one whose type was right, or else the one that got furthest.
    """
    found: dict[str | int, tuple[Any, Path]] = {}
    for error in errors:
        path = _path(error, body)
        field = path[0] if path else ""
        if field not in found or _rank(error, path) > _rank(*found[field]):
            found[field] = (error, path)
    return list(found.values())


def _rank(error: Any, path: Path) -> tuple[bool, int, int, bool]:
    last = max((part for part in path if isinstance(part, int)), default=-1)
    # What an object says that it is tells more than what it lacks to be something else.
    of_other_type = error["type"] == "literal_error" and path[-1:] == ("type",)
    return not error["type"].endswith("_type"), len(path), last, of_other_type


def _code(error: Any) -> str:
    if error["loc"][-1] in NOT_IMPLEMENTED:
        return "unsupported_parameter"
    return {
        "missing": "missing_required_parameter",
        "extra_forbidden": "unknown_parameter",
    }.get(error["type"], "invalid_value")


def _describe(error: Any, path: Path) -> str:
    param = field_name(path) or "body"
    reason = NOT_IMPLEMENTED.get(param)
    if error["type"] == "missing":
        return f"{param} is required"
    if error["type"] == "extra_forbidden":
        return f"{param} is not supported: {reason or 'unknown field'}"
    message = error["msg"].removeprefix("Value error, ")
    got = f"{param}: {message[:1].lower()}{message[1:]}, got {_echo(error['input'])}"
    return f"{got} ({reason})" if reason else got


def _echo(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = repr(value[:MAX_ECHO_CHARS] if isinstance(value, str) else value)
    return text if len(text) <= MAX_ECHO_CHARS else text[: MAX_ECHO_CHARS - 3] + "..."


def _path(error: Any, body: Any) -> Path:
    """Where in the body an error lies: pydantic's locations name the forms of a field too."""
    path: list[str | int] = []
    value = body
    loc = error["loc"][1:]
    for depth, part in enumerate(loc, start=1):
        absent = error["type"] == "missing" and depth == len(loc)
        if isinstance(part, int) and isinstance(value, list) and part < len(value):
            value = value[part]
            path.append(part)
        elif isinstance(value, dict) and (part in value or absent):
            value = value.get(part)
            path.append(part)
    return tuple(path)


def field_name(path: Path) -> str | None:
    """A path as `messages[0].content`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")[:MAX_PARAM_CHARS] or None
