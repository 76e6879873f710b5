"""Options that several `twofour bench` commands have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.common.result_file import read_result

Dense = Annotated[Path | None, typer.Option(help="Engine directory without masks.")]
Sparse = Annotated[Path | None, typer.Option(help="Engine directory of the same model.")]
Masks = Annotated[
    list[str] | None, typer.Option(help="NAME=FILE or FILE, as `twofour build` takes them.")
]
Lengths = Annotated[str, typer.Option(help="Prompt/output tokens, separated by commas.")]
Concurrency = Annotated[str, typer.Option(help="Requests at a time, separated by commas.")]
Repeats = Annotated[int, typer.Option(help="Waves of every arm in every cell.", min=1)]
Threads = Annotated[int, typer.Option(help="OpenMP threads of every arm. [0: all cores]", min=0)]
KvMib = Annotated[int, typer.Option(help="Memory for keys and values, MiB.", min=1)]
KeepRows = Annotated[
    bool, typer.Option("--keep", help="Keep rows of the result file that are not measured again.")
]
RedoRows = Annotated[bool, typer.Option("--redo", help="Measure rows that are there again.")]
JsonLine = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON, as the last line.")
]


def say(line: str) -> None:
    """Progress, beside what programs read."""
    typer.echo(line, err=True)


def finish(path: Path, as_json: bool) -> None:
    """Name the result file, and print what is in it if asked."""
    text = f"wrote {path} and {path.with_suffix('.md')}"
    Console(stderr=as_json).print(text, highlight=False, soft_wrap=True)
    if as_json:
        typer.echo(json.dumps(read_result(path)))
