"""`twofour eval`: perplexity and tasks, of a model, an engine directory, or a running server."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from twofour.commands.option_values import Transform

if TYPE_CHECKING:
    from rich.progress import Progress

    from evaluation.subject import Subject


def evaluate(
    target: Annotated[
        str | None, typer.Argument(help="An engine directory, or a server's URL.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Text for perplexity: a named set, file, folder or hub:NAME."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="lm-eval tasks, separated by commas: arc_easy=FILE and piqa=FILE read a local"
            " file (docs/evaluation.md), other names are lm-eval's own and need its data."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only the first N questions of every task.", min=1)
    ] = None,
    fewshot: Annotated[
        int | None, typer.Option(help="Examples before every question [the task's own].", min=0)
    ] = None,
    task_folder: Annotated[
        Path | None, typer.Option(help="Folder with definitions of more tasks, as lm-eval's.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Alias, directory, GGUF file or hub id; with a URL, the served name."),
    ] = None,
    transform: Transform = None,
    mask: Annotated[
        str | None,
        typer.Option(help="With a model, a mask file; else the name of a mask of the engine."),
    ] = None,
    parent: Annotated[
        Path | None,
        typer.Option(help="File of the parent mask [default: found by digest beside it]."),
    ] = None,
    window: Annotated[int, typer.Option(help="Tokens in a window.", min=2)] = 2048,
    windows: Annotated[
        int | None, typer.Option(help="Only the first N windows, labelled as a subset.", min=1)
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="With a model: bf16, fp32, fp16, or auto: what is fast here.")
    ] = "auto",
    api_key: Annotated[
        str | None, typer.Option(envvar="TWOFOUR_EVAL_API_KEY", help="With a URL.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The last line of stdout is a JSON object.")
    ] = False,
) -> None:
    """Measure perplexity (joined text, windows of 2048 tokens that do not overlap), and tasks."""
    if data is None and tasks is None:
        raise ValueError("give --data for perplexity, --tasks for tasks, or both")
    if tasks is None and (limit, fewshot, task_folder) != (None, None, None):
        raise ValueError("--limit, --fewshot and --task-folder need --tasks")
    console = Console(stderr=as_json)
    result: dict[str, Any] = {}
    with console.status("loading"):
        opened = _open(target, model, transform, mask, parent, dtype, api_key)
    with opened as subject:
        if data is not None:
            result = _perplexity(subject, data, window, windows, console)
        if tasks is not None:
            found = _tasks(subject, tasks.split(","), limit, fewshot, task_folder, console)
            labels = {"model": subject.model, "mask": subject.mask, "dtype": subject.dtype}
            result |= {**labels, "tasks": found, "limit": limit}
    if as_json:
        typer.echo(json.dumps(result))


def _perplexity(
    subject: Subject, data: str, window: int, windows: int | None, console: Console
) -> dict[str, Any]:
    from evaluation.perplexity import EvaluationError
    from evaluation.perplexity import evaluate as measure
    from maskgen.texts.text_sets import load_texts

    longest = subject.context_length
    if longest is not None and window > longest:
        raise EvaluationError(
            f"a window of {window} tokens is longer than the {longest} that {subject.model} takes:"
            f" use --window {longest} or less"
        )
    texts = load_texts(data)
    with _progress(console) as bar:
        task = bar.add_task("windows", total=None)
        result = measure(
            subject.score,
            subject.encode,
            texts,
            model=subject.model,
            mask=subject.mask,
            dtype=subject.dtype,
            bos_token_id=subject.bos_token_id,
            window=window,
            windows=windows,
            progress=lambda done, count, value: bar.update(
                task, completed=done, total=count, description=f"perplexity {value:.2f}"
            ),
        )
    bos = "BOS first" if result.bos else "no BOS"
    console.print(
        f"perplexity {result.perplexity:.3f} of {_name(subject)} on {data} "
        f"({result.subset} of {window} tokens, {result.dtype}, {bos})",
        highlight=False,
        soft_wrap=True,
    )
    return result.as_json()


def _tasks(
    subject: Subject,
    specs: list[str],
    limit: int | None,
    fewshot: int | None,
    folder: Path | None,
    console: Console,
) -> dict[str, dict[str, Any]]:
    from evaluation.lm_tasks import run_tasks

    with _progress(console) as bar:
        task = bar.add_task("answers", total=None)
        found = run_tasks(
            subject,
            specs,
            limit=limit,
            fewshot=fewshot,
            folder=folder,
            progress=lambda done, count: bar.update(task, completed=done, total=count),
        )
    for name, metrics in found.items():
        figures = ", ".join(
            f"{metric} {value:.4f}" for metric, value in metrics.items() if type(value) is float
        )
        of = f"{metrics['samples']} questions" if "samples" in metrics else "all its tasks"
        line = f"{name} of {_name(subject)}: {figures} ({of}, {subject.dtype})"
        console.print(line, highlight=False, soft_wrap=True)
    return found


def _name(subject: Subject) -> str:
    return f"{subject.model} {'dense' if subject.mask is None else 'with ' + subject.mask}"


def _progress(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, console=console, transient=True)


def _open(
    target: str | None,
    model: str | None,
    transform: Path | None,
    mask: str | None,
    parent: Path | None,
    dtype: str,
    api_key: str | None,
) -> AbstractContextManager[Subject]:
    from evaluation.engine_subject import engine_subject
    from evaluation.server_subject import server_subject
    from evaluation.torch_subject import torch_subject

    if target is None:
        if model is None:
            raise ValueError("give --model, an engine directory, or a server's URL")
        masked = Path(mask) if mask else None
        return nullcontext(torch_subject(model, transform, masked, parent, dtype))
    if transform is not None:
        raise ValueError("a transform goes with --model; engines are built from what it makes")
    if parent is not None:
        raise ValueError("--parent goes with --model and a mask file; engines hold whole masks")
    if dtype != "auto":
        raise ValueError(f"--dtype {dtype} goes with --model; an engine computes as it was built")
    if target.startswith(("http://", "https://")):
        return server_subject(target, model, mask, api_key)
    if model is not None:
        raise ValueError("an engine directory holds its model: leave --model out")
    return engine_subject(Path(target), mask)
