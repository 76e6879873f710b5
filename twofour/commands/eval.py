"""`twofour eval`: perplexity of a model, with or without a mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def evaluate(
    data: Annotated[str, typer.Option(help="Text: a named set, file, folder or hub:NAME.")],
    model: Annotated[str, typer.Option(help="Alias, directory or Hugging Face id.")],
    mask: Annotated[Path | None, typer.Option(help="Mask file; none: the dense model.")] = None,
    parent: Annotated[
        Path | None,
        typer.Option(help="File of the parent mask [default: found by digest beside it]."),
    ] = None,
    window: Annotated[int, typer.Option(help="Tokens in a window.", min=2)] = 2048,
    windows: Annotated[
        int | None, typer.Option(help="Only the first N windows, labelled as a subset.", min=1)
    ] = None,
    dtype: Annotated[str, typer.Option(help="bf16, fp32 or fp16.")] = "bf16",
    as_json: Annotated[
        bool, typer.Option("--json", help="The last line of stdout is a JSON object.")
    ] = False,
) -> None:
    """Measure perplexity: joined text, windows of 2048 that do not overlap."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from maskgen.data import load_texts
    from maskgen.evaluate import evaluate as measure
    from maskgen.hf import TorchScorer, apply_to_module, check_base, encoder, load_model
    from maskgen.hf import load_tokenizer as load_hf_tokenizer
    from maskgen.maskfile import base_digest, read_mask
    from maskgen.models import model_name, resolve_model

    directory = resolve_model(model)
    texts = load_texts(data)
    loaded = None if mask is None else read_mask(mask, parent)
    if loaded is not None:
        check_base(loaded, base_digest(directory), model)
    console = Console(stderr=as_json)
    with console.status("loading the model"):
        network = load_model(directory, dtype)
        tokenizer = load_hf_tokenizer(directory)
    if loaded is not None:
        apply_to_module(network, loaded)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("windows", total=None)
        result = measure(
            TorchScorer(network),
            encoder(tokenizer),
            texts,
            model=model_name(model),
            mask=None if mask is None else mask.name,
            dtype=dtype,
            bos_token_id=tokenizer.bos_token_id,
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
