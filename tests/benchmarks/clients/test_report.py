"""Rows of clients.json from a report that pytest wrote, and the page of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.clients.page import clients_page, clients_table
from benchmarks.clients.report import ReportError, client_rows

TESTS = """
import pytest

@pytest.fixture(autouse=True)
def told(record_property):
    record_property("client", "some-client")
    record_property("version", "1.2")

def test_plain_text(): pass

@pytest.mark.parametrize("api", ["chat"])
def test_tools(api): pass

@pytest.mark.xfail(reason="the client's own", strict=True)
def test_known(): assert False

def test_broken(): raise ValueError("no such\\nthing")
"""


def run(folder: Path, tests: str) -> Path:
    (folder / "test_some.py").write_text(tests)
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null"]
    command += ["--rootdir", str(folder), "-o", "junit_family=legacy", f"--junitxml={report}"]
    subprocess.run([*command, str(folder)], capture_output=True, cwd=folder, check=False)
    return report


def test_rows_and_pages(tmp_path: Path) -> None:
    rows = client_rows(run(tmp_path, TESTS))
    assert {(row["client"], row["version"]) for row in rows} == {("some-client", "1.2")}
    passed = {row["scenario"]: row["passed"] for row in rows}
    assert passed == {"plain text": True, "tools (chat)": True, "known": False, "broken": False}
    reasons = {row["scenario"]: row["reason"] for row in rows}
    assert reasons["plain text"] is None
    assert reasons["known"] == "the client's own"
    assert reasons["broken"] == "ValueError: no such thing"

    assert "| some-client | 1.2 | 2 of 4 |" in clients_table(rows)
    machine = {"cores": 2, "cpu": "some", "memory_gib": 1, "system": "Linux"}
    facts = {"date": "2026-11-28", "machine": machine, "machine_class": "avx2", "versions": {}}
    page = clients_page({**facts, "rows": rows, "data_digests": {}, "command": "make"})
    assert "| some-client | 1.2 | tools (chat) | yes |" in page
    assert "- some-client, known: the client's own" in page


def test_a_test_without_a_client_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"test_some\.test_any: it records no client"):
        client_rows(run(tmp_path, "def test_any(): pass"))
