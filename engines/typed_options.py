"""Options declared once: a class whose fields have a type, a default, limits and a description.

Command line, Python API, messages of errors and the tables in the docs are made from these classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Options = TypeVar("Options", bound=BaseModel)


class TypedOptions(BaseModel):
    """Base of all classes of options."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CommonOptions(TypedOptions):
    """Options that every engine has."""

    verify: bool = Field(
        True,
        description="Compare the content of the directory's files with what was built, not their"
        " sizes alone.",
    )


def read_options(kind: type[Options], values: Mapping[str, Any], whose: str) -> Options:
    """Options from values that may still be text, such as `"64"`.

    Args:
        kind: what declares them.
        values: name -> value.
        whose: begins the error for an unknown name, such as `the cpu engine`.

    Raises:
        ValueError: on one line, naming an option that is unknown, or the value and its limit.
    """
    unknown = [name for name in values if name not in kind.model_fields]
    if unknown:
        raise ValueError(
            f"{whose} has no option {unknown[0]!r}; it has: {', '.join(kind.model_fields)}"
        )
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise ValueError(explain(error)) from error


def explain(error: ValidationError, secret: Collection[str] = (), prefix: str = "") -> str:
    """What is wrong with options, on one line.

    Args:
        error: of pydantic.
        secret: options whose values must not be shown.
        prefix: put before names, which then are written with hyphens: `--`.
    """
    parts: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        message = item["msg"].removeprefix("Value error, ")
        if not item["loc"]:  # about several options, which it names
            parts[message] = []
            continue
        name = str(item["loc"][0])
        shown = prefix + name.replace("_", "-") if prefix else name
        value = "" if name in secret else f" is {item['input']!r}"
        # Of an option with several forms, what each of them would have to be.
        parts.setdefault(f"{shown}{value[:80]}: ", []).append(message)
    return "; ".join(start + _wanted(messages) for start, messages in parts.items())


def _wanted(messages: list[str]) -> str:
    shown = [message.replace("Input should be ", "must be ", 1) for message in messages]
    return " or ".join([*shown[:1], *(message.removeprefix("must be ") for message in shown[1:])])
