"""`twofour structure`: smaller dense models, all layers alike, that every loader takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from twofour.commands.line import say
from twofour.commands.option_values import method_settings
from twofour.commands.progress import layer_bar

_Option = typer.Option

app = typer.Typer(
    no_args_is_help=True, help="Remove channels and heads: a smaller dense model, all layers alike."
)

Model = Annotated[str, _Option(help="Alias, directory or Hugging Face id.")]


@app.callback()
def structure() -> None:
    """Remove feed-forward channels and heads: a smaller dense model, all layers alike."""


@app.command("learn")
def learn(
    model: Model,
    out: Annotated[Path, _Option(help="The structure file to write.")],
    ratio: Annotated[
        float,
        _Option(
            help="Share of the decoder's linear weights, or of --latency, that may be left, as 0.8."
        ),
    ],
    data: Annotated[
        list[str] | None, _Option(help="Text: named set, file, folder or hub:NAME (repeat).")
    ] = None,
    method: Annotated[str, _Option(help="magnitude, flap, grasp or maskprune.")] = "maskprune",
    heads: Annotated[
        int | None,
        _Option(
            help="Key-value heads that every layer keeps, with the query heads that read them"
            " [default: all]."
        ),
    ] = None,
    multiple: Annotated[int, _Option(help="The new intermediate size is one of it.", min=1)] = 64,
    latency: Annotated[
        Path | None,
        _Option(help="Budget the time in this file of `structure latency`, in place of weights."),
    ] = None,
    windows: Annotated[int, _Option(help="Calibration windows.", min=1)] = 32,
    length: Annotated[int, _Option(help="Tokens in a window.", min=2)] = 1024,
    seed: Annotated[int, _Option(help="Which windows are drawn, and all else.", min=0)] = 0,
    dtype: Annotated[str, _Option(help="bf16, fp32, or auto: what is fast here.")] = "auto",
    settings: Annotated[
        list[str] | None,
        _Option("--set", help="A setting of the method, NAME=VALUE, as steps=300 (repeat)."),
    ] = None,
    run_dir: Annotated[
        Path | None, _Option(help="Checkpoints and log.jsonl [default: OUT with .run].")
    ] = None,
    resume: Annotated[bool, _Option("--resume", help="Go on from the newest checkpoint.")] = False,
) -> None:
    """Choose the units that stay, and write them to a small file."""
    from maskgen.format.atomic_file import check_output_file
    from maskgen.models import resolve_model
    from maskgen.structure.config import GateConfig, structure_config
    from maskgen.structure.file import write_structure
    from maskgen.structure.latency import read_latency
    from maskgen.structure.learn import StructureRequest, learn_structure
    from maskgen.texts.text_sets import TextSet, load_texts

    check_output_file(out)
    config = structure_config(method, method_settings(settings or []))
    if isinstance(config, GateConfig) and "seed" not in config.model_fields_set:
        config = config.model_copy(update={"seed": seed})
    console = Console()
    texts = None
    if data:
        with console.status("reading text"):
            loaded = [text for name in data for text in load_texts(name).texts]
            texts = TextSet.of("+".join(data), loaded)
    request = StructureRequest(
        method=method,
        config=config,
        ratio=ratio,
        key_value_heads=heads,
        multiple=multiple,
        latency=None if latency is None else read_latency(latency),
        windows=windows,
        length=length,
        seed=seed,
        dtype=dtype,
        folder=run_dir or out.with_suffix(".run"),
        resume=resume,
    )
    directory = resolve_model(model)
    with layer_bar(f"{method} on {model}") as report:
        result = learn_structure(directory, texts, request, report, console)
    write_structure(out, result.structure)
    timed = result.latency_share
    time = "" if timed is None else f" and {100 * timed:.1f} % of their time"
    say(
        console,
        f"{out}: {method}, {result.structure.width} a layer, {100 * result.share:.1f} % of the"
        f" linears' weights{time}; from {result.tokens:,} tokens in {result.seconds:.1f} s",
    )


@app.command("latency")
def latency(
    model: Model,
    out: Annotated[Path, _Option(help="The latency file to write.")],
    tokens: Annotated[int, _Option(help="In a step: how many requests run at once.", min=1)] = 1,
    threads: Annotated[int, _Option(help="Of the engine; 0 for all.", min=0)] = 0,
) -> None:
    """Measure what channels and heads cost the CPU engine in time, for learn --latency."""
    from engines.cpu.layer_latency import attention_latency, feed_forward_latency
    from engines.native.kernels import isa
    from maskgen.format.model_directory import read_model_config
    from maskgen.models import resolve_model
    from maskgen.structure.latency import LayerLatency, sizes_of, write_latency
    from maskgen.structure.width import LayerShape, UnitCosts

    shape = LayerShape.of(read_model_config(resolve_model(model)))
    full, console = shape.full, Console()
    with console.status("measuring layers"):
        channels = feed_forward_latency(shape.hidden, full.intermediate, tokens, threads)
        heads = attention_latency(
            shape.hidden, full.key_value_heads, shape.repeat, shape.head, tokens, threads
        )
    costs = UnitCosts(channels.unit, heads.unit, channels.fixed + heads.fixed)
    where = {"isa": isa(), "tokens": tokens, "threads": threads}
    write_latency(out, LayerLatency(sizes_of(shape), costs, where))
    say(
        console,
        f"{out}: a layer takes {costs.of(full):.1f} us on {where['isa']}, of which a channel"
        f" {costs.channel:.4f} us, a key-value head {costs.head:.3f} us, neither {costs.fixed:.1f}"
        " us",
    )


@app.command("apply")
def apply(
    model: Model,
    structure: Annotated[Path, _Option(help="The structure file.")],
    out: Annotated[Path, _Option(help="The model directory to make.")],
) -> None:
    """Write the smaller model: a base like any other, for every command and other tools."""
    from maskgen.models import resolve_model
    from maskgen.structure.file import read_structure
    from maskgen.structure.removal import apply_structure

    loaded = read_structure(structure)
    console = Console()
    with console.status("writing weights"):
        digest = apply_structure(resolve_model(model), loaded, out)
    say(console, f"{out}: {model} with {loaded.width} a layer, base digest {digest}")


@app.command("inspect")
def inspect(
    file: Annotated[Path, typer.Argument(help="A structure file.", metavar="FILE")],
    as_json: Annotated[
        bool, _Option("--json", help="Print one JSON object instead of lines.")
    ] = False,
) -> None:
    """Show what a structure file keeps."""
    from maskgen.structure.file import FEED_FORWARD, read_structure

    loaded = read_structure(file)
    facts = {
        "intermediate_size": loaded.width.intermediate,
        "num_key_value_heads": loaded.width.key_value_heads,
        "layers": sum(name.endswith(f".{FEED_FORWARD}") for name in loaded.kept),
        "scaled_groups": len(loaded.scales),
        "low_rank_modules": len(loaded.low_rank),
        "architecture": loaded.record.architecture,
        "method": loaded.record.method,
        "seed": loaded.record.seed,
        "structure_digest": loaded.digest,
        "base_digest": loaded.record.base_digest,
        "result_digest": loaded.record.result_digest,
        "calibration_digest": loaded.record.calibration_digest,
    }
    if as_json:
        typer.echo(json.dumps(facts))
        return
    console = Console()
    for name, value in facts.items():
        say(console, f"{name.replace('_', ' ')}: {'none' if value is None else value}")
