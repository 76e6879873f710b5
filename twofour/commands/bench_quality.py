"""`twofour bench quality`: perplexity of what `twofour bench engine` times."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twofour.commands.bench_options import Dense, JsonLine, RedoRows, Sparse, finish, say

_Option = typer.Option


def quality(
    mask: Annotated[Path, _Option(help="Mask of the sparse arm.")],
    data: Annotated[str, _Option(help="Text, as `twofour eval` takes it.")],
    model: Annotated[str, _Option(help="Alias or directory.")] = "smollm2-135m",
    sparse: Sparse = None,
    dense: Dense = None,
    peer: Annotated[list[str] | None, _Option(help="llama.cpp-TYPE=FILE.gguf (repeat).")] = None,
    windows: Annotated[int, _Option(help="Of 2,048 tokens.", min=1)] = 16,
    redo: RedoRows = False,
    json_: JsonLine = False,
) -> None:
    """Score engines, the same weights in torch, and GGUF files (docs/results/quality.json).

    What is in the result file already is not scored again.
    """
    from benchmarks.common.table import Earlier, Table, TableSpec
    from benchmarks.engine.arms import LLAMA
    from benchmarks.engine.pages import quality_page
    from benchmarks.engine.quality import KEY, quality_arms
    from maskgen.format.digests import base_digest
    from maskgen.format.mask_file import read_mask
    from maskgen.models import resolve_model
    from maskgen.texts.text_sets import load_texts

    gguf = {}
    for spec in peer or []:
        arm, _, file = spec.partition("=")
        if not arm.startswith(LLAMA) or not Path(file).is_file():
            raise ValueError(f"--peer {spec!r}: give {LLAMA}TYPE=FILE.gguf, a file that exists")
        gguf[arm] = Path(file)
    directories = {a: path for a, path in (("sparse", sparse), ("dense", dense)) if path}
    if not directories and not gguf:
        raise ValueError("give --sparse, --dense or --peer: there is nothing to score")
    texts = load_texts(data)
    inputs = {
        "text": texts.digest,
        "model": base_digest(resolve_model(model)),
        "mask": read_mask(mask).digest,
        "windows": str(windows),
    }
    spec_ = TableSpec("quality", KEY, quality_page)
    table = Table(spec_, Earlier.DROP if redo else Earlier.RESUME, inputs)
    for arm, score in quality_arms(model, mask, directories, gguf, texts, windows).items():
        if table.measure((arm,), score):
            say(f"{arm}: {table[(arm,)]['perplexity']:.3f}")
    finish(table.path, json_)
