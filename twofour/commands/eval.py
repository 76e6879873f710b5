"""`twofour eval`: perplexity of a model, of an engine directory, or of a running server."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from twofour.scoring import Subject


def evaluate(
    data: Annotated[str, typer.Option(help="Text: a named set, file, folder or hub:NAME.")],
    target: Annotated[
        str | None, typer.Argument(help="An engine directory, or a server's URL.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Alias, directory or Hugging Face id; with a URL, the served name."),
    ] = None,
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
    """Measure perplexity: joined text, windows of 2048 tokens that do not overlap."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from maskgen.data import load_texts
    from maskgen.evaluate import evaluate as measure

    texts = load_texts(data)
    console = Console(stderr=as_json)
    with console.status("loading"):
        opened = _open(target, model, mask, parent, dtype, api_key)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with opened as subject, Progress(*columns, console=console, transient=True) as bar:
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
        f"perplexity {result.perplexity:.3f} of {result.model} "
        f"{'dense' if result.mask is None else 'with ' + result.mask} on {data} "
        f"({result.subset} of {window} tokens, {result.dtype}, {bos})",
        highlight=False,
        soft_wrap=True,
    )
    if as_json:
        typer.echo(json.dumps(result.as_json()))


def _open(
    target: str | None,
    model: str | None,
    mask: str | None,
    parent: Path | None,
    dtype: str,
    api_key: str | None,
) -> AbstractContextManager[Subject]:
    from twofour.scoring import engine_subject, server_subject, torch_subject

    if target is None:
        if model is None:
            raise ValueError("give --model, an engine directory, or a server's URL")
        return nullcontext(torch_subject(model, Path(mask) if mask else None, parent, dtype))
    if target.startswith(("http://", "https://")):
        return nullcontext(server_subject(target, model, mask, api_key))
    if model is not None:
        raise ValueError("an engine directory holds its model: leave --model out")
    return engine_subject(Path(target), mask)
