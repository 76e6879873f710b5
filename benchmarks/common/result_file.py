"""Result files and the pages beside them, written by the command that measured them."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.common.machine_facts import describe_machine, machine_class, versions
from maskgen.format.atomic_file import write_text
from maskgen.format.json_file import read_json, write_json

RESULTS = Path("docs/results")

ResultRow = dict[str, Any]
ResultData = dict[str, Any]
Page = Callable[[ResultData], str]
"""Renders a result as the page beside its file."""


def write_result(
    name: str,
    page: Page,
    rows: Sequence[Mapping[str, Any]],
    *,
    command: str,
    data_digests: Mapping[str, str] | None = None,
    folder: Path = RESULTS,
    on: str | None = None,
    packages: Mapping[str, str] | None = None,
    **extra: Any,
) -> Path:
    """Write `docs/results/<name>.json` and the page beside it, each whole or not at all.

    Args:
        name: which result.
        page: renders it.
        rows: the figures.
        command: what to run to get it again (`this_command`).
        data_digests: name of the data -> its digest.
        folder: where to, if not to `docs/results`.
        on: class of the machine; None for that of the CPU.
        packages: versions of what the numbers depend on; None for those of what is installed.
        extra: more fields, such as `other_cpu_share`.

    Returns:
        The path of the JSON file.
    """
    result = {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "machine_class": machine_class() if on is None else on,
        "versions": versions() if packages is None else dict(packages),
        "data_digests": dict(data_digests or {}),
        "rows": list(rows),
        **extra,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    write_json(path, result, indent=1)
    write_page(path, page)
    return path


def read_result(path: Path) -> ResultData:
    """What is in a result file."""
    return read_json(path, ValueError)


def write_page(path: Path, page: Page) -> Path:
    """Write the page beside a result file, and give its path."""
    target = path.with_suffix(".md")
    write_text(target, page(read_result(path)))
    return target


def this_command() -> str:
    """The command line, for a result file.

    Folders that only this machine has are left out: a path in the working directory is written from
    there, of any other the last part is kept.
    """
    here = f"{Path.cwd()}/"

    def shorten(path: re.Match[str]) -> str:
        return path[1] + (path[2].removeprefix(here) if path[2].startswith(here) else path[3])

    words = [re.sub(r"(^|[=,])(/(?:[^=,]*/)?([^=,/]+)/?)", shorten, word) for word in sys.argv[1:]]
    return shlex.join(["twofour", *words])
