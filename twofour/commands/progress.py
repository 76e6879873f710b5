"""A progress bar over decoder layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console


@contextmanager
def layer_bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar; gives what moves it, called with (layers done, layers in all, name of the layer)."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[layer]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:  # stdout has the results
        task = bar.add_task(title, total=None, layer="loading")
        yield lambda done, count, name: bar.update(task, completed=done, total=count, layer=name)
