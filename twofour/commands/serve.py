"""`twofour serve`: an engine directory over OpenAI's API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from engines.option_flags import option_flags
from serving.config import SECRET, ServerSettings


@option_flags(ServerSettings, without=["engine_options"])
def serve(
    directory: Annotated[Path, typer.Argument(help="Engine directory, from `twofour build`.")],
    engine_option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE for the engine, the value as JSON or text. May be repeated."),
    ] = None,
    **given: Any,
) -> None:
    """Serve an engine directory over OpenAI's API.

    Every option can also be set in the environment: --max-waiting as SERVING_MAX_WAITING, and so
    on. The command line wins.
    """
    from pydantic import ValidationError

    from engines.cpu.idle import shorten_spinning
    from engines.typed_options import explain

    shorten_spinning()
    from serving.server import run

    if not directory.is_dir():
        raise ValueError(f"{directory} is not an engine directory: no such folder")
    typed = {name: value for name, value in given.items() if value is not None}
    if engine_option:
        typed["engine_options"] = _engine_options(engine_option)
    try:
        settings = ServerSettings(directory=directory, **typed)
    except ValidationError as error:
        raise ValueError(explain(error, SECRET, "--")) from error
    run(settings)


def _engine_options(pairs: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise ValueError(f"--engine-option takes NAME=VALUE, got {pair!r}")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options
