"""`twofour mask learn`: learn a mask on text, from a prior."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from maskgen.registry import method_names
from twofour.commands.line import say
from twofour.commands.option_values import Transform, beside_options

if TYPE_CHECKING:
    from maskgen.format.mask import Mask
    from maskgen.format.pattern import Pattern
    from maskgen.learn import LearnRequest
    from maskgen.texts.text_sets import TextSet

_Option = typer.Option


def learn(
    model: Annotated[str, _Option(help="Alias, directory, GGUF file or Hugging Face id.")],
    data: Annotated[
        list[str], _Option(help="Text to learn on: named set, file, folder or hub:NAME (repeat).")
    ],
    out: Annotated[Path, _Option(help="The mask file to write.")],
    transform: Transform = None,
    prior: Annotated[
        str, _Option(help="Where to start: a mask file, or a one-shot method to run first.")
    ] = "sparsegpt",
    pattern: Annotated[
        str | None, _Option(help="N:M of a prior that is computed [default: 2:4].")
    ] = None,
    method: Annotated[str, _Option(help=f"One of {', '.join(method_names('learn'))}.")] = "maskllm",
    domain: Annotated[str, _Option(help="Label: what kind of text this is for.")] = "general",
    steps: Annotated[int | None, _Option(help="Optimiser steps.")] = None,
    seed: Annotated[int, _Option(help="Of noise, initial logits and text order.")] = 0,
    batch_size: Annotated[int | None, _Option(help="Sequences in a micro-batch.")] = None,
    sequence_length: Annotated[int | None, _Option(help="Tokens in a sequence.")] = None,
    micro_batches: Annotated[
        int | None, _Option(help="Micro-batches in a step, over all ranks.")
    ] = None,
    learning_rate: Annotated[float | None, _Option(help="Peak learning rate.")] = None,
    final_learning_rate: Annotated[
        float | None, _Option(help="Where the cosine ends [default: a tenth of --learning-rate].")
    ] = None,
    settings: Annotated[
        list[str] | None,
        _Option("--set", help="Any other setting of the method, NAME=VALUE (repeat)."),
    ] = None,
    run_dir: Annotated[
        Path | None, _Option(help="Checkpoints and log.jsonl [default: OUT with .run].")
    ] = None,
    resume: Annotated[bool, _Option("--resume", help="Go on from the newest checkpoint.")] = False,
    held_out: Annotated[
        str | None, _Option(help="Text to evaluate the hard mask on while learning.")
    ] = None,
    held_out_every: Annotated[int, _Option(help="Steps between evaluations.", min=1)] = 50,
    include: Annotated[
        list[str] | None, _Option(help="Learn only linears that match this glob (repeat).")
    ] = None,
    exclude: Annotated[
        list[str] | None, _Option(help="Keep linears that match this glob dense (repeat).")
    ] = None,
    dense_first: Annotated[int, _Option(help="First decoder layers left dense.", min=0)] = 0,
    dense_last: Annotated[int, _Option(help="Last decoder layers left dense.", min=0)] = 0,
    dtype: Annotated[
        str, _Option(help="Of the frozen weights: bf16, fp32, or auto: what is fast here.")
    ] = "auto",
    device: Annotated[str | None, _Option(help="torch device [default: CUDA, if any].")] = None,
    tensorboard: Annotated[Path | None, _Option(help="Folder for TensorBoard events.")] = None,
    parent: Annotated[
        Path | None, _Option(help="Store only the difference to this mask file.")
    ] = None,
) -> None:
    """Learn a mask. Under torchrun, every rank takes its share of the micro-batches."""
    from engines.typed_options import read_options
    from maskgen.format.coverage import coverage
    from maskgen.format.mask import check_pattern
    from maskgen.format.mask_file import check_mask_output, read_mask, write_mask
    from maskgen.format.pattern import Pattern
    from maskgen.learn import LearnRequest
    from maskgen.learn import learn as run
    from maskgen.models import resolve_model
    from maskgen.registry import load_method
    from maskgen.selection import LayerChoice
    from maskgen.texts.text_sets import TextSet, load_texts

    check_mask_output(out)
    given = {
        "steps": steps,
        "batch_size": batch_size,
        "sequence_length": sequence_length,
        "micro_batches": micro_batches,
        "learning_rate": learning_rate,
        "final_learning_rate": final_learning_rate,
    }
    if learning_rate is not None and final_learning_rate is None and method != "maskpro":
        given["final_learning_rate"] = learning_rate / 10
    chosen = {name: value for name, value in given.items() if value is not None}
    config = read_options(
        load_method(method, "learn").config,
        {**chosen, "seed": seed, **beside_options(settings or [], {**given, "seed": seed})},
        method,
    )
    console = Console()
    base = None if parent is None else read_mask(parent)
    directory = resolve_model(model, transform)
    texts = TextSet.of("+".join(data), [text for name in data for text in load_texts(name).texts])
    request = LearnRequest(
        method=method,
        config=config,
        folder=run_dir or out.with_suffix(".run"),
        domain=domain,
        resume=resume,
        layers=LayerChoice(include or (), exclude or (), dense_first, dense_last),
        dtype=dtype,
        device=device,
        tensorboard=tensorboard,
        held_out=None if held_out is None else load_texts(held_out),
        held_out_every=0 if held_out is None else held_out_every,
    )
    wanted = None if pattern is None else Pattern.parse(pattern)
    start = prior_mask(prior, wanted, directory, texts, request, console)
    if base is not None:
        check_pattern(base, start.pattern, str(parent))  # before hours of work, not after
    result = run(directory, texts, start, request, console)
    if not result.first:
        return
    write_mask(out, result.mask, parent=base)
    bits = out.stat().st_size * 8 / result.mask.weights
    say(
        console,
        f"{out}: {method} mask of {len(result.mask.codes)} layers, "
        f"{100 * result.changed:.2f} % of groups changed, {bits:.3f} bits per weight, from "
        f"{result.tokens:,} tokens in {result.seconds:.1f} s; training state "
        f"{result.state_bytes['total']:.0f} bytes per weight",
    )
    say(console, f"{out} {coverage(result.mask)}")


def prior_mask(
    prior: str,
    pattern: Pattern | None,
    directory: Path,
    texts: TextSet,
    request: LearnRequest,
    console: Console,
) -> Mask:
    """The mask that learning starts from: a file's, or what a one-shot method makes of the text.

    A computed prior is kept in the run's folder, and a run that is resumed starts from it; any
    other computes its own.

    Raises:
        MaskFileError: the file's mask has another pattern than is asked for.
        ValueError: neither a file nor a one-shot method, or a method under torchrun.
    """
    from maskgen.format.mask import check_pattern
    from maskgen.format.mask_file import read_mask, write_mask
    from maskgen.format.pattern import TWO_FOUR
    from maskgen.prune import PruneSettings, prune
    from maskgen.registry import load_method, method_names
    from maskgen.texts.windows import TooLittleTextError
    from maskgen.torch_model import stated_context

    if Path(prior).is_file():
        mask = read_mask(Path(prior))
        check_pattern(mask, pattern or mask.pattern, prior)
        return mask
    if prior not in method_names("prune"):
        raise ValueError(
            f"prior {prior!r} is neither a mask file nor one of {', '.join(method_names('prune'))}"
        )
    kept = request.folder / f"prior-{prior}.safetensors"
    if request.resume and kept.is_file():
        mask = read_mask(kept)
        check_pattern(mask, pattern or mask.pattern, str(kept))
        say(console, f"starting from {kept}, computed when the run began")
        return mask
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"several ranks cannot each compute the prior: `twofour mask prune --method {prior}`"
            " first and give its file as --prior"
        )
    chosen = load_method(prior, "prune")
    if chosen.updates_weights:
        raise ValueError(f"{prior} changes weights; learning needs a mask of the original ones")
    console.print(f"computing the prior with {prior}")
    settings = PruneSettings(method=prior, layers=request.layers, pattern=pattern or TWO_FOUR)
    context = stated_context(directory)
    if context is not None:
        settings = replace(settings, length=min(settings.length, context))
    try:
        result = prune(directory, texts if chosen.uses_calibration else None, settings)
    except TooLittleTextError as error:
        raise TooLittleTextError(
            f"the prior needs more text: {error}; or run `twofour mask prune --method {prior}` with"
            " fewer --windows and give its file as --prior"
        ) from error
    request.folder.mkdir(parents=True, exist_ok=True)
    write_mask(kept, result.mask)
    return result.mask
