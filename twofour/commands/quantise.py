"""`twofour quantise`: int8 and int4 values whose rounding errors are fed back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twofour.commands.option_values import Transform

_Option = typer.Option


def quantise(
    model: Annotated[str, _Option(help="Alias, directory, GGUF file or Hugging Face id.")],
    data: Annotated[str, _Option(help="Calibration: named set, file, folder, hub:NAME or self.")],
    out: Annotated[Path, _Option(help="The values file to write, for `twofour build`.")],
    values: Annotated[str, _Option(help="int8 or int4.")] = "int4",
    block: Annotated[
        int | None, _Option(help="Inputs that share a scale [default: as `twofour build`].")
    ] = None,
    minima: Annotated[
        bool | None, _Option(help="Blocks of int4 have a minimum of their own [default: they do].")
    ] = None,
    mask: Annotated[
        Path | None,
        _Option(help="Make values for what this mask keeps; no other can be loaded then."),
    ] = None,
    transform: Transform = None,
    windows: Annotated[int, _Option(help="Calibration windows.", min=1)] = 64,
    length: Annotated[int, _Option(help="Tokens in a window.", min=2)] = 1024,
    seed: Annotated[int, _Option(help="Which windows are drawn.", min=0)] = 0,
    dtype: Annotated[str, _Option(help="bf16, fp32, or auto: what is fast here.")] = "auto",
) -> None:
    """Round a model's linear layers by GPTQ, and write their values for `twofour build`."""
    from rich.progress import Progress

    from engines.quantisation.options import ValueOptions
    from engines.typed_options import read_options
    from maskgen.experts import RareExperts
    from maskgen.format.atomic_file import check_output_file
    from maskgen.format.mask_file import read_mask
    from maskgen.models import resolve_model
    from maskgen.quantise import QuantiseSettings, quantise_model
    from maskgen.recovery.quantiser import Values, WeightGrid
    from maskgen.texts.self_text import calibration_texts

    if values == "bf16":
        raise ValueError("--values bf16: bf16 weights are not quantised; choose int8 or int4")
    given = {"values": values, "block": block, "minima": minima}
    options = read_options(ValueOptions, given, "twofour quantise")
    check_output_file(out)
    kind: Values = "int8" if options.values == "int8" else "int4"
    grid = WeightGrid(kind, options.block_inputs, options.has_minima)
    settings = QuantiseSettings(grid, windows, length, seed, dtype)
    directory = resolve_model(model, transform)
    texts = calibration_texts(data, directory, tokens=windows * length, seed=seed, dtype=dtype)
    rare = RareExperts()
    with Progress(transient=True) as bar:
        task = bar.add_task("layer by layer", total=None)
        header = quantise_model(
            directory,
            texts,
            settings,
            out,
            read_mask(mask) if mask else None,
            lambda done, count, name: bar.update(task, completed=done, total=count),
            rare,
        )
    for line in rare.lines():
        typer.echo(line)
    masks = "every mask" if header.mask_digest is None else "this mask alone"
    typer.echo(f"{out}: {header.values} values by {header.quantiser}, for {masks}")
