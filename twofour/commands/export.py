"""`twofour export`: a masked model for other programs, as a checkpoint or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twofour.commands.option_values import Transform


def export(
    model: Annotated[str, typer.Option(help="Alias, directory, GGUF file or Hugging Face id.")],
    out: Annotated[
        Path, typer.Option(help="A new model directory, or a new file that ends in .gguf.")
    ],
    mask: Annotated[
        Path | None, typer.Option(help="What it drops becomes zero; none exports the dense model.")
    ] = None,
    transform: Transform = None,
    kind: Annotated[
        str | None,
        typer.Option("--type", help="Of a GGUF file: f32, f16, bf16 [default], q8_0, q5_0, q4_0."),
    ] = None,
) -> None:
    """Write a model whose dropped weights are zero, as others load it.

    A directory is a plain checkpoint. The types of a GGUF file are those that give back zeros.
    """
    from rich.console import Console

    from maskgen.apply import apply_mask
    from maskgen.format.mask_file import read_mask
    from maskgen.models import model_name, resolve_model
    from twofour.gguf_content import export_gguf

    loaded = None if mask is None else read_mask(mask)
    directory = resolve_model(model, transform)
    console = Console()
    if out.suffix.lower() == ".gguf":
        with console.status("writing weights"):
            counts = export_gguf(directory, out, model_name(model), loaded, kind or "bf16")
        said = ", ".join(f"{count} {name}" for name, count in counts.items())
        typer.echo(f"{out}: {model}, {said} matrices, {out.stat().st_size / 2**20:.0f} MiB")
        return
    if kind is not None:
        raise ValueError(f"--type {kind} is of GGUF files; --out {out} is a directory")
    if loaded is None:
        raise ValueError("a model directory without a mask is the model itself: give --mask")
    with console.status("writing weights"):
        digest = apply_mask(directory, loaded, out)
    typer.echo(f"{out}: {model} with {mask} applied, base digest {digest}")
