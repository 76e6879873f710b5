"""`twofour build`: turn a model and its masks into an engine directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twofour.commands.option_values import Transform, named_masks


def build(
    model: Annotated[str, typer.Option(help="Alias, directory or Hugging Face id.")],
    out: Annotated[Path, typer.Option(help="The engine directory to make.")],
    transform: Transform = None,
    mask: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=FILE, or FILE to name it by its domain. Repeat for more masks; the first is"
            " the default. None builds a dense engine."
        ),
    ] = None,
    target: Annotated[str, typer.Option(help="cpu, vllm, tensorrt-llm or reference.")] = "cpu",
    name: Annotated[
        str | None, typer.Option(help="What requests call the model [default: the model's name].")
    ] = None,
    sealed: Annotated[
        bool, typer.Option(help="Leave out what masks loaded later would need.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an engine directory at --out.")] = False,
    option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE, a setting of the target's own builder; repeat for more."),
    ] = None,
) -> None:
    """Build an engine directory from a model and its masks."""
    from rich.progress import Progress

    from engines.directory.build import BuildRequest
    from engines.registry import find_target, run_builder
    from maskgen.models import model_name, resolve_model

    find_target(target)
    with Progress(transient=True) as bar:
        task = bar.add_task("reading", total=None)
        manifest = run_builder(
            target,
            BuildRequest(
                model=resolve_model(model, transform),
                model_name=name or model_name(model),
                masks=named_masks(mask or []),
                out=out,
                sealed=sealed,
                overwrite=overwrite,
                progress=lambda what, done, total: bar.update(
                    task, description=what, completed=done, total=total
                ),
                note=lambda line: bar.console.print(line, highlight=False, soft_wrap=True),
            ),
            _settings(target, option or []),
        )
    size = sum(file.bytes for file in manifest.files.values()) / 2**20
    names = ", ".join(m.name for m in manifest.masks) or "none (dense)"
    typer.echo(f"{out}: {manifest.model} for {target}, masks {names}, {size:.0f} MiB")


def _settings(target: str, options: list[str]) -> dict[str, str]:
    from engines.registry import TARGETS, find_target

    if options and not find_target(target).settings:
        able = [name for name, entry in TARGETS.items() if entry.settings]
        raise ValueError(f"target {target} takes no --option; {', '.join(able)} does")
    pairs = [option.partition("=") for option in options]
    for name, found, _ in pairs:
        if not found:
            raise ValueError(f"--option {name!r} is not NAME=VALUE")
    return {name: value for name, _, value in pairs}
