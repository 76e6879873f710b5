"""Rows of clients.json, from the report that pytest writes of the scenarios."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.common.result_file import ResultRow

_MOST_CHARS = 300


class ReportError(ValueError):
    """The report does not say which client a scenario is of."""


def client_rows(report: Path) -> list[ResultRow]:
    """A row of every scenario.

    Args:
        report: JUnit's XML, of tests that record the properties `client` and `version`.

    Raises:
        ReportError: a test did not record them.
    """
    # Our own pytest wrote it a moment ago.
    tree = ElementTree.parse(report)
    return [_row(case) for case in tree.iter("testcase")]


def _row(case: ElementTree.Element) -> ResultRow:
    facts = {one.get("name"): one.get("value") for one in case.iter("property")}
    if not {"client", "version"} <= facts.keys():
        told = "; ".join(_reasons(case)) or "it records no client and version"
        raise ReportError(f"{case.get('classname')}.{case.get('name')}: {told}")
    reason = next(_reasons(case), None)
    return {
        "client": facts["client"],
        "version": facts["version"],
        "scenario": _scenario(case.get("name", "")),
        "passed": reason is None,
        "reason": reason,
    }


def _reasons(case: ElementTree.Element) -> Iterator[str]:
    """Why a scenario did not pass; an expected failure gives the reason that its test states."""
    for kind in ("failure", "error", "skipped"):
        for found in case.iter(kind):
            yield " ".join((found.get("message") or kind).split())[:_MOST_CHARS]


def _scenario(test: str) -> str:
    """`test_function_tool[chat]` as `function tool (chat)`."""
    name, _, parameters = test.removeprefix("test_").partition("[")
    words = name.replace("_", " ")
    return f"{words} ({re.sub('[_-]', ' ', parameters[:-1])})" if parameters else words
