"""`twofour serve`: an engine directory over OpenAI's API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

_Option = typer.Option


def serve(
    directory: Annotated[Path, typer.Argument(help="Engine directory, from `twofour build`.")],
    host: Annotated[str | None, _Option(help="Address to listen on. [127.0.0.1]")] = None,
    port: Annotated[int | None, _Option(help="Port; 0 picks a free one. [8000]")] = None,
    served_model_name: Annotated[
        str | None, _Option(help="What requests call the model. [the name in engine.json]")
    ] = None,
    verify: Annotated[
        bool | None,
        _Option(
            "--verify/--no-verify",
            help="Compare the directory's files with what was built. [--verify]",
        ),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        _Option(help="Key that opens the API; may be repeated. Better in SERVING_API_KEY."),
    ] = None,
    admin_api_key: Annotated[
        list[str] | None, _Option(help="Key for the routes that load and unload masks.")
    ] = None,
    mask_root: Annotated[
        Path | None, _Option(help="Folder from which masks may be loaded over HTTP.")
    ] = None,
    max_waiting: Annotated[
        int | None, _Option(help="Choices that may wait for a first token; more get 429. [256]")
    ] = None,
    max_choices: Annotated[
        int | None, _Option(help="Most choices of one request, n times prompts. [128]")
    ] = None,
    max_logprob_entries: Annotated[
        int | None,
        _Option(help="Most log-probs of one request: tokens, choices, alternatives. [262144]"),
    ] = None,
    max_body_bytes: Annotated[int | None, _Option(help="Largest request body. [4 MiB]")] = None,
    header_timeout: Annotated[
        float | None, _Option(help="Seconds that a request's headers may take. [20]")
    ] = None,
    body_timeout: Annotated[
        float | None, _Option(help="Seconds that a request's body may take. [60]")
    ] = None,
    idle_timeout: Annotated[
        float | None, _Option(help="Seconds that a connection may be idle. [75]")
    ] = None,
    keep_alive_interval: Annotated[
        float | None, _Option(help="Seconds of silence before a stream gets a comment. [15]")
    ] = None,
    max_step_age: Annotated[
        float | None, _Option(help="Unhealthy after so many seconds without a step. [60]")
    ] = None,
    shutdown_timeout: Annotated[
        float | None, _Option(help="Seconds that requests may go on after SIGTERM. [25]")
    ] = None,
    log_level: Annotated[str | None, _Option(help="debug, info, warning or error. [info]")] = None,
    access_log: Annotated[bool | None, _Option(help="Log every request.")] = None,
    engine_option: Annotated[
        list[str] | None,
        _Option(help="NAME=VALUE for the engine, the value as JSON or text; may be repeated."),
    ] = None,
) -> None:
    """Serve an engine directory over OpenAI's API.

    Every option can also be set in the environment: --max-waiting as SERVING_MAX_WAITING, and so
    on. The command line wins.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    if "engine_option" in given:
        given["engine_options"] = _engine_options(given.pop("engine_option"))
    _serve(given)


def _serve(given: dict[str, Any]) -> None:
    from pydantic import ValidationError

    from engines.cpu.idle import shorten_spinning

    shorten_spinning()
    from serving.config import ServerSettings
    from serving.server import run

    if not given["directory"].is_dir():
        raise ValueError(f"{given['directory']} is not an engine directory: no such folder")
    try:
        settings = ServerSettings(**given)
    except ValidationError as error:
        raise ValueError(_explain(error)) from error
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


def _explain(error: Any) -> str:
    """Pydantic's errors on one line, without the values: one of them may be a key."""
    parts = []
    for item in error.errors(include_url=False, include_input=False):
        name = "--" + str(item["loc"][0]).replace("_", "-") + ": " if item["loc"] else ""
        parts.append(name + item["msg"].removeprefix("Value error, "))
    return "; ".join(parts)
