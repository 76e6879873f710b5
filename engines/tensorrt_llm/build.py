"""Builds TensorRT-LLM engines with 2:4 weights: `twofour build --target tensorrt-llm`.

Also a program of its own:

    python -m engines.tensorrt_llm.build --model M --mask general=F --mask french=G --out DIR
    python -m engines.tensorrt_llm.build --extend DIR --model M --mask spanish=H    add a mask
    python -m engines.tensorrt_llm.build --resume DIR    build what is missing
    python -m engines.tensorrt_llm.build --record DIR    read the logs of finished engines

It ends with exit code 3 when it wrote everything but the engines because TensorRT-LLM or a GPU is
absent; `build.sh` in the directory then holds the commands for a machine that has both.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from engines.directory.build import BuildRequest
from engines.directory.manifest import Manifest
from engines.errors import EngineDirectoryError
from engines.option_flags import option_flags
from engines.tensorrt_llm.directory import recheck_checkpoint, write_directory
from engines.tensorrt_llm.extend import add_masks
from engines.tensorrt_llm.record import (
    LOGS,
    SCRIPT_FILE,
    BuildRecord,
    describe_engine,
    read_record,
    record_build,
)
from engines.tensorrt_llm.script import engine_steps
from engines.tensorrt_llm.settings import BuildSettings, parse_build_settings
from engines.tensorrt_llm.version import ToolsMissingError, find_environment

_LOG_TAIL = 15


def build(request: BuildRequest, **settings: Any) -> Manifest:
    """Write the engine directory and, where TensorRT-LLM and a GPU are present, its engines.

    Args:
        request: model, masks and the directory to make.
        settings: see `engines.tensorrt_llm.settings.BuildSettings`.

    Raises:
        EngineDirectoryError: the request cannot be met, or the build failed; finished engines
            are kept, and `resume` goes on from there.
        ToolsMissingError: everything but the engines was written.
    """
    parsed = parse_build_settings(settings)
    write_directory(request, parsed)
    resume(request.out, parsed.timing_cache)
    return read_record(request.out)[0]


def resume(directory: Path, timing_cache: Path | None = None) -> BuildRecord:
    """Build the engines that a directory lacks and record what TensorRT chose.

    Args:
        directory: a TensorRT-LLM engine directory.
        timing_cache: file of kernel timings to read and extend; the directory's own by default.

    Raises:
        EngineDirectoryError: the directory is unreadable, a checkpoint is no longer 2:4, or the
            build failed.
        ToolsMissingError: TensorRT-LLM or a GPU is absent.
        NoSparseTacticsError: an engine uses no sparse tactic.
    """
    manifest, record = read_record(directory)
    try:
        find_environment().require()
    except ToolsMissingError as error:
        raise ToolsMissingError(
            f"no engine was built: {error}. The checkpoints and the commands are ready: run"
            f" {directory / SCRIPT_FILE} where TensorRT-LLM and the GPU are"
        ) from None
    for name, engine in record.engines.items():
        # Not trusted to be what was written: a dense weight here would silently cost the speed-up.
        if record.sparse and not (directory / engine.directory).is_dir():
            recheck_checkpoint(directory, manifest, record, name)
    _run_script(directory, record, timing_cache)
    record = record_build(directory)
    typer.echo(summary(directory, record))
    return record


def extend(
    directory: Path, model: Path, masks: dict[str, Path], timing_cache: Path | None = None
) -> BuildRecord:
    """Add masks to a directory: by refitting its plan, or an engine each, as it was made.

    What is there already can be served all the while, and after a failure.

    Raises:
        EngineDirectoryError, MaskError, ToolsMissingError, NoSparseTacticsError: as for `build`.
    """
    add_masks(directory, model, masks)
    return resume(directory, timing_cache)


def _run_script(directory: Path, record: BuildRecord, timing_cache: Path | None) -> None:
    environment = os.environ | {"PYTHON": sys.executable}
    if timing_cache is not None:
        environment["TIMING_CACHE"] = str(timing_cache.absolute())
    script = directory.absolute() / SCRIPT_FILE
    command = ["bash", str(script), "--no-record"]
    result = subprocess.run(command, env=environment, check=False)
    if result.returncode == 0:
        return
    for log, final in engine_steps(record):
        if not (directory / final).is_dir():
            raise EngineDirectoryError(_failure(directory / LOGS / f"{log}.log", log))
    raise EngineDirectoryError(f"{script} ended with {result.returncode}")


def _failure(log: Path, name: str) -> str:
    if not log.is_file():
        return f"building {name!r} failed before it wrote a log"
    tail = log.read_text(errors="replace").splitlines()[-_LOG_TAIL:]
    return "\n".join([f"building {name!r} failed; {log} ends with:", *tail])


def summary(directory: Path, record: BuildRecord) -> str:
    """What was built, for people."""
    lines = [f"{directory}: built with TensorRT-LLM {record.tensorrt_llm}"]
    lines += [f"  {n}: {describe_engine(engine, record)}" for n, engine in record.engines.items()]
    return "\n".join(lines)


def parse_masks(pairs: list[str]) -> dict[str, Path]:
    """`NAME=FILE` arguments, in order."""
    masks: dict[str, Path] = {}
    for pair in pairs:
        name, _, file = pair.partition("=")
        if not name or not file:
            raise EngineDirectoryError(f"--mask {pair!r} is not NAME=FILE")
        if name in masks:
            raise EngineDirectoryError(f"--mask {name!r} is given twice")
        masks[name] = Path(file)
    return masks


def show_progress(what: str, done: int, total: int) -> None:
    """One line that is written over, on a terminal only."""
    if sys.stderr.isatty():
        typer.echo(f"\r\x1b[K{what} ({done}/{total})", err=True, nl=False)


@option_flags(BuildSettings)
def command(
    model: Annotated[Path | None, typer.Option(help="Hugging Face model directory.")] = None,
    mask: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE; repeat for more, the first is the default.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Engine directory to make.")] = None,
    name: Annotated[str | None, typer.Option(help="Model name that requests will use.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an engine directory.")] = False,
    extend_: Annotated[
        Path | None, typer.Option("--extend", help="Add the masks to this directory instead.")
    ] = None,
    resume_: Annotated[
        Path | None, typer.Option("--resume", help="Build what this directory lacks.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Read the logs of this directory's finished engines.")
    ] = None,
    **settings: Any,
) -> None:
    """Build 2:4-sparse TensorRT-LLM engines, one per mask, and report what TensorRT chose."""
    if record is not None:
        typer.echo(summary(record, record_build(record)))
        return
    if resume_ is not None:
        resume(resume_, settings["timing_cache"])
        return
    if model is not None and extend_ is not None:
        extend(extend_, model, parse_masks(mask or []), settings["timing_cache"])
        return
    if model is None or out is None:
        raise EngineDirectoryError(
            "give --model and --out, --model and --extend, or --resume or --record"
        )
    request = BuildRequest(
        model=model,
        model_name=name or model.absolute().name,
        masks=parse_masks(mask or []),
        out=out,
        overwrite=overwrite,
        progress=show_progress,
    )
    build(request, **settings)


def run_program(function: Any, arguments: list[str] | None = None) -> None:
    """Run a typer command: exit code 0, 1 with a message, or what the error asks for."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(function)
    try:
        app(arguments)
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(getattr(error, "exit_code", 1))


if __name__ == "__main__":
    run_program(command)
