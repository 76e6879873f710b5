"""`twofour build`: turn a model and its masks into an engine directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from engines.option_flags import option_flags
from engines.quantisation.options import ValueOptions
from twofour.commands.option_values import Transform, named_masks


@option_flags(ValueOptions)
def build(
    model: Annotated[str, typer.Option(help="Alias, directory, GGUF file or Hugging Face id.")],
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
    with_dense: Annotated[
        bool,
        typer.Option(help="Put the dense model beside the masks; requests call it NAME:dense."),
    ] = False,
    sealed: Annotated[
        bool, typer.Option(help="Leave out what masks loaded later would need.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an engine directory at --out.")] = False,
    values_file: Annotated[
        Path | None,
        typer.Option(help="int8 or int4 values from `twofour quantise`, in place of --values."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE, a setting of the target's own builder; repeat for more."),
    ] = None,
    **values: Any,
) -> None:
    """Build an engine directory from a model and its masks."""
    from pydantic import ValidationError
    from rich.progress import Progress

    from engines.directory.build import BuildRequest
    from engines.registry import find_target, run_builder
    from engines.typed_options import explain
    from maskgen.models import model_name, resolve_model

    find_target(target)
    chosen = {name: value for name, value in values.items() if value is not None}
    try:
        value_options = ValueOptions(**chosen)
    except ValidationError as error:
        raise ValueError(explain(error, prefix="--")) from error
    with Progress(transient=True) as bar:
        task = bar.add_task("reading", total=None)
        manifest = run_builder(
            target,
            BuildRequest(
                model=resolve_model(model, transform),
                model_name=name or model_name(model),
                masks=named_masks(mask or []),
                out=out,
                with_dense=with_dense,
                sealed=sealed,
                overwrite=overwrite,
                values=value_options,
                values_file=values_file,
                progress=lambda what, done, total: bar.update(
                    task, description=what, completed=done, total=total
                ),
                note=lambda line: bar.console.print(line, highlight=False, soft_wrap=True),
            ),
            _settings(target, option or []),
        )
    size = sum(file.bytes for file in manifest.files.values()) / 2**20
    names = ", ".join(m.name for m in manifest.masks) or "none (dense)"
    names += " and dense" if manifest.dense else ""
    kinds = manifest.quantisation.summary if manifest.quantisation else "bf16"
    typer.echo(f"{out}: {manifest.model} for {target}, masks {names}, {kinds}, {size:.0f} MiB")


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
