"""Flags of a command, made from a class of options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

Command = TypeVar("Command", bound=Callable[..., None])


def option_flags(
    kind: type[BaseModel], without: Collection[str] = ()
) -> Callable[[Command], Command]:
    """Give a typer command a flag for each option; those that are not typed are None.

    The command takes them as keyword arguments. What is typed is checked where the options are
    read, which is where values from elsewhere are checked too.

    Args:
        kind: declares the options.
        without: options that get no flag.
    """

    def add(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True).parameters.values()
        kept = [p for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
        taken = {p.name for p in kept} | set(without)
        flags = [_flag(n, f) for n, f in kind.model_fields.items() if n not in taken]
        signature = inspect.Signature([*kept, *flags])
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return command

    return add


def default_text(field: FieldInfo) -> str:
    """The default as a person would write it; empty where there is none."""
    value = field.get_default(call_default_factory=True)
    if field.is_required() or value is None or value == () or value == {}:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _flag(name: str, field: FieldInfo) -> inspect.Parameter:
    base, several = _plain_type(field.annotation)
    hyphened = "--" + name.replace("_", "-")
    names = [f"{hyphened}/--no-{hyphened[2:]}"] if base is bool else [hyphened]
    default = default_text(field)
    about = " ".join(filter(None, [field.description, "May be repeated." if several else None]))
    option = typer.Option(*names, help=f"{about} [{default}]" if default else about)
    wanted = list[base] | None if several else base | None  # type: ignore[valid-type]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[wanted, option]
    )


def _plain_type(annotation: Any) -> tuple[type, bool]:
    """The type that typer is to read, and whether the flag may be repeated."""
    if get_origin(annotation) is tuple:
        return _plain_type(get_args(annotation)[0])[0], True
    for inner in (annotation, *get_args(annotation)):
        if inner in (bool, int, float, str, Path):
            return inner, False
    return str, False
