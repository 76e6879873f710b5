"""`twofour recover`: change the weights that a mask keeps until the masked model is good again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from twofour.commands.option_values import beside_options

_Option = typer.Option


def recover(
    model: Annotated[str, _Option(help="Dense model: alias, directory or Hugging Face id.")],
    data: Annotated[
        list[str], _Option(help="Text to learn on: named set, file, folder or hub:NAME (repeat).")
    ],
    checkpoint: Annotated[Path, _Option(help="The model directory to write.")],
    mask: Annotated[Path | None, _Option(help="Mask file of the dense model; with --out.")] = None,
    out: Annotated[Path | None, _Option(help="The mask file to write, of --checkpoint.")] = None,
    teacher: Annotated[
        str | None,
        _Option(help="Without a mask: the model that --model, a smaller one, was made of."),
    ] = None,
    steps: Annotated[int | None, _Option(help="Steps of end-to-end tuning; 0 for none.")] = None,
    learning_rate: Annotated[float | None, _Option(help="Peak learning rate of tuning.")] = None,
    final_learning_rate: Annotated[
        float | None, _Option(help="Where the cosine ends [default: a tenth of --learning-rate].")
    ] = None,
    sequence_length: Annotated[int | None, _Option(help="Tokens in a sequence.")] = None,
    batch_size: Annotated[int | None, _Option(help="Sequences in a micro-batch.")] = None,
    micro_batches: Annotated[int | None, _Option(help="Micro-batches in a step.")] = None,
    weights: Annotated[bool, _Option(help="Change the weights that the mask keeps.")] = True,
    norms: Annotated[bool, _Option(help="Change the gains of norms.")] = True,
    biases: Annotated[bool, _Option(help="Change the biases of linears.")] = True,
    embeddings: Annotated[bool, _Option(help="Change the embedding and a tied head.")] = False,
    values: Annotated[
        str, _Option(help="Type of the kept weights: bf16, or int8 or int4, quantised in the loop.")
    ] = "bf16",
    block: Annotated[
        int | None, _Option(help="Inputs that share a scale [default: as `twofour build`].")
    ] = None,
    minima: Annotated[
        bool | None, _Option(help="Blocks of int4 have a minimum of their own [default: they do].")
    ] = None,
    seed: Annotated[int, _Option(help="Of text order and drawn windows.")] = 0,
    settings: Annotated[
        list[str] | None,
        _Option("--set", help="Any other setting, NAME=VALUE, as block_steps=50 (repeat)."),
    ] = None,
    run_dir: Annotated[
        Path | None, _Option(help="Checkpoints and logs [default: OUT, or CHECKPOINT, with .run].")
    ] = None,
    resume: Annotated[bool, _Option("--resume", help="Go on from the newest checkpoint.")] = False,
    held_out: Annotated[
        list[str] | None,
        _Option(help="Text that decides which step was best (repeat); not the test text."),
    ] = None,
    held_out_every: Annotated[int, _Option(help="Steps between evaluations.", min=1)] = 25,
    held_out_windows: Annotated[int, _Option(help="Sequences of it that are used.", min=1)] = 16,
    dtype: Annotated[str, _Option(help="bf16, fp32, or auto: what is fast here.")] = "auto",
    device: Annotated[str | None, _Option(help="torch device [default: CUDA, if any].")] = None,
    tensorboard: Annotated[Path | None, _Option(help="Folder for TensorBoard events.")] = None,
) -> None:
    """Tune the kept weights for one mask; writes a new model directory and the mask for it.

    Without a mask, tune the weights of a smaller dense model against its teacher. Under torchrun,
    every rank takes its share of the micro-batches.
    """
    from engines.quantisation.options import ValueOptions
    from engines.typed_options import read_options
    from maskgen.format.mask_file import check_mask_output, read_mask, write_mask
    from maskgen.models import resolve_model
    from maskgen.recover import recover as run
    from maskgen.recovery.config import RecoverConfig
    from maskgen.recovery.request import RecoverRequest
    from maskgen.texts.text_sets import TextSet, load_texts

    if (mask is None) != (out is None):
        raise ValueError("--mask and --out go together: the mask is written anew for --checkpoint")
    if out is not None:
        check_mask_output(out)
    given = {
        "steps": steps,
        "learning_rate": learning_rate,
        "final_learning_rate": final_learning_rate,
        "sequence_length": sequence_length,
        "batch_size": batch_size,
        "micro_batches": micro_batches,
    }
    if learning_rate is not None and final_learning_rate is None:
        given["final_learning_rate"] = learning_rate / 10
    chosen = {name: value for name, value in given.items() if value is not None}
    of_build = read_options(
        ValueOptions, {"values": values, "block": block, "minima": minima}, "twofour recover"
    )
    grid: dict[str, object] = {"values": of_build.values}
    if of_build.values != "bf16":
        grid |= {"block": of_build.block_inputs, "minima": of_build.has_minima}
    groups = {"weights": weights, "norms": norms, "biases": biases, "embeddings": embeddings}
    own = {**given, **groups, "values": values, "block": block, "minima": minima, "seed": seed}
    config = read_options(
        RecoverConfig,
        {**chosen, **groups, **grid, "seed": seed, **beside_options(settings or [], own)},
        "twofour recover",
    )

    def texts_of(names: list[str]) -> TextSet:
        return TextSet.of("+".join(names), [t for name in names for t in load_texts(name).texts])

    request = RecoverRequest(
        config=config,
        folder=run_dir or (out or checkpoint).with_suffix(".run"),
        checkpoint=checkpoint,
        resume=resume,
        dtype=dtype,
        device=device,
        tensorboard=tensorboard,
        held_out=texts_of(held_out) if held_out else None,
        held_out_every=held_out_every,
        held_out_windows=held_out_windows,
        teacher=None if teacher is None else resolve_model(teacher),
    )
    console = Console()
    given_mask = None if mask is None else read_mask(mask)
    result = run(resolve_model(model), given_mask, texts_of(data), request, console)
    if not result.first:
        return
    kept = "" if result.best_step is None else f", best after step {result.best_step} of tuning"
    against = f"for {mask}" if mask is not None else f"by {teacher}"
    console.print(
        f"{checkpoint}: {model} recovered {against} from {result.tokens:,} tokens in "
        f"{result.seconds:.1f} s{kept}, base digest {result.digest}",
        highlight=False,
        soft_wrap=True,
    )
    if out is not None and result.mask is not None:
        write_mask(out, result.mask)
        console.print(f"{out}: the mask for it", highlight=False, soft_wrap=True)
