"""`twofour bench export`: exported GGUF files in llama.cpp's own perplexity program."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from twofour.commands.bench_options import JsonLine, RedoRows, finish, say

_Option = typer.Option


def export(
    mask: Annotated[Path, _Option(help="What it drops is zero in the file.")],
    data: Annotated[str, _Option(help="Text, as `twofour eval` takes it.")],
    program: Annotated[Path, _Option(help="llama.cpp's llama-perplexity.")],
    model: Annotated[str, _Option(help="Alias or directory.")] = "smollm2-135m",
    types: Annotated[str, _Option(help="Of GGUF files, separated by commas.")] = "f16,q8_0",
    window: Annotated[int, _Option(help="Tokens in a window.", min=4)] = 2048,
    windows: Annotated[int, _Option(help="How many are scored.", min=1)] = 4,
    redo: RedoRows = False,
    json_: JsonLine = False,
) -> None:
    """Score exported files with llama-perplexity and in torch (docs/results/export.json).

    What is in the result file already is not scored again.
    """
    from benchmarks.common.table import Earlier, Table, TableSpec
    from benchmarks.engine.export import KEY, export_page, export_row
    from maskgen.format.digests import base_digest
    from maskgen.format.mask_file import read_mask
    from maskgen.models import model_name, resolve_model
    from maskgen.texts.text_sets import load_texts
    from twofour.gguf_content import export_gguf

    if not program.is_file():
        raise FileNotFoundError(f"--program {program}: there is no such file; build llama.cpp's")
    loaded, texts, directory = read_mask(mask), load_texts(data), resolve_model(model)
    inputs = {
        "text": texts.digest,
        "model": base_digest(directory),
        "mask": loaded.digest,
        "windows": f"{windows} of {window}",
    }
    table = Table(
        TableSpec("export", KEY, export_page), Earlier.DROP if redo else Earlier.RESUME, inputs
    )
    for kind in types.split(","):
        with TemporaryDirectory() as folder:
            file = Path(folder) / f"{model_name(model)}.gguf"
            export_gguf(directory, file, model_name(model), loaded, kind)
            row = partial(
                export_row,
                program,
                file,
                model,
                mask,
                texts,
                Path(folder),
                window=window,
                windows=windows,
            )
            if table.measure((kind,), row):
                found = table[(kind,)]
                say(f"{kind}: llama.cpp {found['llama_cpp']}, torch {found['file']}")
    finish(table.path, json_)
