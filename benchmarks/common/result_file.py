"""Result files: every number that the docs quote, written by the command that measured it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.common.machine import describe_machine, versions

RESULTS = Path("docs/results")


def write_result(
    name: str,
    command: str,
    rows: Sequence[Mapping[str, Any]],
    data_digests: Mapping[str, str] | None = None,
    **extra: Any,
) -> Path:
    """Write `docs/results/<name>.json`, whole or not at all, and give its path.

    Args:
        name: which result.
        command: what to run to get it again.
        rows: the figures.
        data_digests: name of the data -> its digest.
        extra: more fields, such as `other_cpu_share`.
    """
    result = {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": versions(),
        "data_digests": dict(data_digests or {}),
        "rows": list(rows),
        **extra,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return path
