"""`twofour bench values`: what types of values cost in quality, and what they save in bytes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from twofour.commands.bench_masks_inputs import parse_base_and_mask, parse_directory_and_mask
from twofour.commands.bench_options import JsonLine, RedoRows, finish, say

_Option = typer.Option
_SPECS = [
    "bf16",
    "bf16,head=int8",
    *(f"int8,block={block}" for block in (32, 64, 128)),
    *(f"int4,block={block}" for block in (32, 64, 128)),
    *(f"int4,block={block},minima=false" for block in (32, 64, 128)),
    "int4,head=bf16",
]


def values(
    wikitext2: Annotated[str, _Option(help="Text, as `twofour eval` takes it.")],
    c4: Annotated[str, _Option(help="A second text.")] = "c4",
    model: Annotated[str, _Option(help="Alias or directory.")] = "smollm2-135m",
    mask: Annotated[
        list[str] | None,
        _Option(
            help="FILE: a mask of the model, or DIR=FILE: of another base of it; one of each"
            " pattern (repeat)."
        ),
    ] = None,
    spec: Annotated[
        list[str] | None,
        _Option(
            help="Types of values as VALUES[,OPTION=VALUE...], options as `twofour build` has."
        ),
    ] = None,
    single: Annotated[
        list[str] | None,
        _Option(help="DIR=FILE: a model that twofour recover made, and its mask (repeat)."),
    ] = None,
    gguf: Annotated[
        list[str] | None,
        _Option(help="TYPE=FILE: a GGUF file of the same model, as q4_0=F.gguf (repeat)."),
    ] = None,
    windows: Annotated[int, _Option(help="Of 2,048 tokens, of each text.", min=1)] = 4,
    redo: RedoRows = False,
    json_: JsonLine = False,
) -> None:
    """Perplexity and bytes by type of values and pattern (docs/results/lowbit-quality.json).

    What is in the result file already is not measured again.
    """
    from benchmarks.common.table import Earlier, Table, TableSpec
    from benchmarks.values.page import values_page
    from benchmarks.values.quality import KEY, ValuesBench, run_gguf, run_values
    from engines.quantisation.options import ValueOptions
    from engines.typed_options import read_options
    from maskgen.format.digests import base_digest
    from maskgen.models import resolve_model
    from maskgen.texts.text_sets import load_texts

    chosen = [read_options(ValueOptions, _fields(text), "--spec") for text in spec or _SPECS]
    masks = [parse_base_and_mask(text, model) for text in mask or ()]
    singles = [parse_directory_and_mask(pair) for pair in single or ()]
    files = dict(_type_and_file(pair) for pair in gguf or ())
    texts = {"wikitext2": load_texts(wikitext2), "c4": load_texts(c4)}
    inputs = {name: text.digest for name, text in texts.items()}
    inputs |= {"model": base_digest(resolve_model(model)), "windows": str(windows)}
    table = Table(
        TableSpec("lowbit-quality", KEY, values_page),
        Earlier.DROP if redo else Earlier.RESUME,
        inputs,
    )
    with tempfile.TemporaryDirectory(prefix="twofour-values-") as work:
        bench = ValuesBench(texts, windows, Path(work), table, say)
        run_values(bench, model, masks, singles, chosen)
        run_gguf(bench, files)
    finish(table.path, json_)


def _type_and_file(pair: str) -> tuple[str, Path]:
    kind, equals, file = pair.partition("=")
    if not equals:
        raise ValueError(f"--gguf {pair!r} is not TYPE=FILE")
    return kind.lower(), Path(file)


def _fields(text: str) -> dict[str, str]:
    first, *rest = text.split(",")
    fields = {"values": first}
    for pair in rest:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--spec {text!r}: {pair!r} is not OPTION=VALUE")
        fields[name] = value
    return fields
