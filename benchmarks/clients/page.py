"""The page of clients.json, and the table of it in the guide to the server."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.page import bullets, markdown_table, page
from benchmarks.common.result_file import ResultData, ResultRow

_ABOUT = """
Other people's client programs, unmodified and in environments of their own, against one server
process with SmolLM2-135M under its learned mask. Every scenario looks at the objects that the
client made of the answers: streams say what whole answers say, calls of functions fit their
schemas, results of calls reach the model and an answer comes back, and token counts are those of
`/tokenize`.
"""


def clients_table(rows: Sequence[ResultRow]) -> str:
    """A line of every client."""
    clients = dict.fromkeys((row["client"], row["version"]) for row in rows)
    lines = []
    for client, version in clients:
        own = [row for row in rows if (row["client"], row["version"]) == (client, version)]
        passed = sum(row["passed"] for row in own)
        lines.append([client, version, f"{passed} of {len(own)}"])
    return markdown_table(["client", "version", "scenarios passed"], lines, text=2)


def clients_page(result: ResultData) -> str:
    """Every scenario, and why some do not pass."""
    rows = result["rows"]
    failed = [row for row in rows if not row["passed"]]
    lines = [
        [row["client"], row["version"], row["scenario"], "yes" if row["passed"] else "no"]
        for row in rows
    ]
    parts = [
        markdown_table(["client", "version", "scenario", "passed"], lines, text=4),
    ]
    if failed:
        told = [f"{row['client']}, {row['scenario']}: {row['reason']}" for row in failed]
        parts += ["## Not passed", bullets(told)]
    return page("Client programs", _ABOUT, result, clients_table(rows), "## Scenarios", *parts)
