"""`twofour transform learn`: find a basis in which masks lose less."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from twofour.commands.line import say
from twofour.commands.option_values import method_settings
from twofour.commands.progress import layer_bar

if TYPE_CHECKING:
    from maskgen.texts.text_sets import TextSet
    from maskgen.transform.file import Transform

_Option = typer.Option
_CHECKED_TOKENS = 256


def learn(
    model: Annotated[str, _Option(help="Alias, directory, GGUF file or Hugging Face id.")],
    out: Annotated[Path, _Option(help="The transform file to write.")],
    data: Annotated[
        str | None,
        _Option(help="Calibration text: a named set, file, folder, hub:NAME, or self."),
    ] = None,
    method: Annotated[str, _Option(help="zigzag, assignment, learned or rotation.")] = "assignment",
    start: Annotated[
        Path | None,
        _Option(help="A transform file to go on from; the new one does what both do."),
    ] = None,
    pattern: Annotated[
        str, _Option(help="Of the masks that orders are made for, N:M such as 2:4 or 16:32.")
    ] = "2:4",
    windows: Annotated[int, _Option(help="Calibration windows.", min=1)] = 64,
    length: Annotated[int, _Option(help="Tokens in a window.", min=2)] = 1024,
    seed: Annotated[int, _Option(help="Which windows are drawn, and all else.", min=0)] = 0,
    dtype: Annotated[str, _Option(help="bf16, fp32, or auto: what is fast here.")] = "auto",
    include: Annotated[
        list[str] | None, _Option(help="Masks will cover only linears of this glob (repeat).")
    ] = None,
    exclude: Annotated[
        list[str] | None, _Option(help="Masks will leave linears of this glob dense (repeat).")
    ] = None,
    dense_first: Annotated[int, _Option(help="First decoder layers left dense.", min=0)] = 0,
    dense_last: Annotated[int, _Option(help="Last decoder layers left dense.", min=0)] = 0,
    settings: Annotated[
        list[str] | None,
        _Option("--set", help="A setting of the method, NAME=VALUE (repeat)."),
    ] = None,
    run_dir: Annotated[
        Path | None, _Option(help="Checkpoints and log.jsonl of learned [default: OUT with .run].")
    ] = None,
    resume: Annotated[bool, _Option("--resume", help="Go on from the newest checkpoint.")] = False,
) -> None:
    """Find a transform of a model, write it, and hold what it makes to the model's own answers."""
    from maskgen.format.atomic_file import check_output_file
    from maskgen.format.pattern import Pattern
    from maskgen.models import resolve_model
    from maskgen.selection import LayerChoice
    from maskgen.texts.self_text import calibration_texts
    from maskgen.transform.absorb import transformed, with_result
    from maskgen.transform.compose import compose
    from maskgen.transform.config import transform_config
    from maskgen.transform.file import read_transform, write_transform
    from maskgen.transform.learn import learn_transform
    from maskgen.transform.request import TransformRequest

    check_output_file(out)
    request = TransformRequest(
        method=method,
        config=transform_config(method, _settings(method, settings or [], seed)),
        windows=windows,
        length=length,
        seed=seed,
        pattern=Pattern.parse(pattern),
        dtype=dtype,
        folder=run_dir or out.with_suffix(".run"),
        resume=resume,
        layers=LayerChoice(include or (), exclude or (), dense_first, dense_last),
    )
    console = Console()
    base = resolve_model(model)
    directory = base if start is None else transformed(base, start)
    texts = None
    if data is not None:
        with console.status(f"reading {data}"):
            texts = calibration_texts(
                data, directory, tokens=windows * length, seed=seed, dtype=dtype
            )
    with layer_bar(f"{method} on {model}") as report:
        result = learn_transform(directory, texts, request, report, console)
    transform = result.transform
    if start is not None:
        transform = with_result(base, compose(read_transform(start), transform))
    write_transform(out, transform)
    facts = ", ".join(f"{n.replace('_', ' ')} {v:.4f}" for n, v in result.facts.items())
    say(
        console,
        f"{out}: {transform.method}, {facts}; from {result.tokens:,} tokens in"
        f" {result.seconds:.1f} s",
    )
    _verify(console, base, transform, transformed(base, out), texts)


def _settings(method: str, given: list[str], seed: int) -> dict[str, Any]:
    """Those given, and the seed where the method has one of its own."""
    from maskgen.transform.config import TRANSFORM_METHODS

    parsed = method_settings(given)
    entry = TRANSFORM_METHODS.get(method)
    if entry is not None and "seed" in entry.config.model_fields:
        return {"seed": seed, **parsed}
    return parsed


def _verify(
    console: Console, base: Path, transform: Transform, made: Path, texts: TextSet | None
) -> None:
    """Compare answers before and after; permutations have to be exact."""
    import numpy as np

    from maskgen.format.tokenizer import ModelTokenizer
    from maskgen.transform.verify import check_exact, compare_answers

    tokenizer = ModelTokenizer(base)
    text = "" if texts is None else "\n\n".join(texts.texts[:8])
    ids = tokenizer.encode(text, add_special_tokens=False)[:_CHECKED_TOKENS]
    window = np.array(ids or range(16), dtype=np.int32)
    difference = compare_answers(base, made, window)
    say(
        console,
        f"answers: logits differ by at most {difference.logits:.1e} (the largest is"
        f" {difference.largest:.1f}), the likeliest token at {difference.changed} of"
        f" {difference.positions} positions",
    )
    if not transform.rotations:
        check_exact(difference)
