"""`twofour import`: masks and engines from 2:4 checkpoints that other tools wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer


def import_checkpoint(
    checkpoint: Annotated[
        Path, typer.Argument(help="A Hugging Face model directory, or a GGUF file.")
    ],
    out: Annotated[Path, typer.Option(help="Directory to make: model, mask and engine.")],
    target: Annotated[
        str | None, typer.Option(help="Also build an engine: cpu, vllm, tensorrt-llm, reference.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What requests call the model [default: CHECKPOINT's name].")
    ] = None,
    domain: Annotated[str, typer.Option(help="What the mask calls its domain.")] = "general",
) -> None:
    """Turn a checkpoint of compressed-tensors, or a dense one that is 2:4, into model and mask.

    A GGUF file counts as dense, and so do FP8 weights with a scale per block; some types of the
    former give back no zeros.
    """
    from rich.progress import Progress

    from engines.directory.atomic_directory import atomic_directory
    from engines.directory.build import BuildRequest
    from engines.directory.import_checkpoint import import_checkpoint as run
    from engines.registry import find_target, run_builder
    from maskgen.format.coverage import coverage, dense_lines
    from maskgen.models import model_name

    if target is not None:
        find_target(target)
    with Progress(transient=True) as bar, atomic_directory(out) as directory:
        task = bar.add_task("reading", total=None)

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        with _opened(checkpoint) as (source, note):
            imported = run(source, directory, domain=domain, progress=progress)
        if target is not None:
            request = BuildRequest(
                model=imported.model,
                model_name=name or model_name(str(checkpoint.resolve())),
                masks={domain: imported.mask},
                out=directory / "engine",
                progress=progress,
                note=lambda line: bar.console.print(line, highlight=False, soft_wrap=True),
            )
            run_builder(target, request)
    typer.echo(
        f"{out}: {imported.kind} checkpoint with {len(imported.found.codes)} 2:4 layers"
        f" ({', '.join(p.name for p in sorted(out.iterdir()))})"
    )
    typer.echo(f"{out} {coverage(imported.found)}")
    for line in dense_lines(imported.dense, imported.found.decoder_weights or 0):
        typer.echo(f"  {line}")
    for line in (*imported.notes, *([note] if note else [])):
        typer.echo(f"  {line}")


@contextmanager
def _opened(checkpoint: Path) -> Iterator[tuple[Path, str]]:
    """The model directory to import, and what a GGUF file's types did to its zeros.

    Errors speak of the checkpoint, and not of what was made of it.
    """
    from engines.errors import EngineDirectoryError
    from maskgen.models import from_gguf, is_gguf, without_fp8

    note = ""
    if is_gguf(checkpoint):
        note = _lost_zeros(checkpoint)
        directory = from_gguf(checkpoint)
    elif (checkpoint / "config.json").is_file():
        directory = without_fp8(checkpoint)
    else:
        directory = checkpoint
    try:
        yield directory, note
    except EngineDirectoryError as error:
        message = str(error).replace(str(directory), str(checkpoint))
        raise EngineDirectoryError(f"{message}; {note}" if note else message) from error


def _lost_zeros(file: Path) -> str:
    from maskgen.gguf_model.header import read_gguf_header
    from maskgen.gguf_model.values import zero_losing_matrices

    lost = zero_losing_matrices(read_gguf_header(file))
    counts = ", ".join(f"{count} as {name}" for name, count in sorted(lost.items()))
    return f"matrices stored in types that give back no zeros: {counts}" if lost else ""
