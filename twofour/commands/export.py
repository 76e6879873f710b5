"""`twofour export`: a masked model for other programs, as a checkpoint or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twofour.commands.option_values import Transform

if TYPE_CHECKING:
    from maskgen.format.mask import Mask


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
        str,
        typer.Option("--type", help="Of a GGUF file: f32, f16, bf16, q8_0, q5_0 or q4_0."),
    ] = "bf16",
) -> None:
    """Write a model whose dropped weights are zero, as others load it.

    A directory is a plain checkpoint. The types of a GGUF file are those that give back zeros.
    """
    from rich.console import Console

    from maskgen.apply import apply_mask
    from maskgen.format.mask_file import read_mask
    from maskgen.models import model_name, resolve_model

    loaded = None if mask is None else read_mask(mask)
    directory = resolve_model(model, transform)
    console = Console()
    if out.suffix == ".gguf":
        with console.status("writing weights"):
            counts = _write_file(directory, out, model_name(model), loaded, kind)
        said = ", ".join(f"{count} {name}" for name, count in counts.items())
        typer.echo(f"{out}: {model}, {said} matrices, {out.stat().st_size / 2**20:.0f} MiB")
        return
    if loaded is None:
        raise ValueError("a model directory without a mask is the model itself: give --mask")
    with console.status("writing weights"):
        digest = apply_mask(directory, loaded, out)
    typer.echo(f"{out}: {model} with {mask} applied, base digest {digest}")


def _write_file(
    directory: Path, out: Path, name: str, mask: Mask | None, kind: str
) -> dict[str, int]:
    from maskgen.apply import check_base
    from maskgen.gguf_model.write import EXPORT_TYPES, write_gguf
    from twofour.gguf_content import check_said, gguf_content

    if kind not in EXPORT_TYPES:
        raise ValueError(f"--type {kind!r} is none of {', '.join(EXPORT_TYPES)}")
    if out.exists():
        raise FileExistsError(f"{out} exists already; name a new file")
    if mask is not None:
        check_base(directory, mask)
    content = gguf_content(directory, name)
    partial = out.with_name(f".{out.name}.partial")
    try:
        counts = write_gguf(directory, partial, content, mask, EXPORT_TYPES[kind])
        check_said(directory, partial)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return counts
