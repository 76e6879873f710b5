"""Tables: each row on disk before the next, and what becomes of rows that are there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import table as table_module
from benchmarks.common.table import Earlier, StaleRowsError, Table, TableSpec

SPEC = TableSpec("t", ("a", "b"), lambda result: "", lambda rows: {"count": len(rows)})


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["twofour", "bench", "t"])


def stored() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(Path("docs/results/t.json").read_text())
    return result


def fails() -> dict[str, object]:
    raise RuntimeError("stopped")


def test_a_row_is_on_disk_before_the_next_is_measured() -> None:
    table = Table(SPEC, Earlier.RESUME, {"text": "digest"})
    assert table.measure(("x", 1), lambda: {"value": 5})
    with pytest.raises(RuntimeError, match="stopped"):
        table.measure(("x", 2), fails)
    assert stored()["rows"][0]["value"] == 5
    assert stored()["count"] == 1
    again = Table(SPEC, Earlier.RESUME, {"text": "digest"})
    assert not again.measure(("x", 1), fails)
    assert again[("x", 1)]["value"] == 5


def test_rows_of_other_inputs_are_refused_or_dropped() -> None:
    Table(SPEC, Earlier.RESUME, {"text": "digest"}).measure(("x", 1), lambda: {"value": 5})
    with pytest.raises(StaleRowsError, match=r"measured with another text .*--redo"):
        Table(SPEC, Earlier.RESUME, {"text": "other"})
    assert Table(SPEC, Earlier.DROP, {"text": "other"}).rows() == []


def test_kept_rows_are_replaced_when_they_are_measured_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Table(SPEC, Earlier.DROP).put([{"a": "x", "b": b, "value": 1} for b in (1, 2)])
    result = stored() | {"notes": ["slow"]}
    Path("docs/results/t.json").write_text(json.dumps(result))
    monkeypatch.setattr(sys, "argv", ["twofour", "bench", "t", "--keep"])
    table = Table(SPEC, Earlier.KEEP)
    table.put([{"a": "x", "b": 1, "value": 2, "other_cpu_share": 0.25}])
    assert table.measure(("x", 3), lambda: {"value": 3})
    assert [(row["b"], row["value"]) for row in stored()["rows"]] == [(2, 1), (1, 2), (3, 3)]
    assert stored()["command"] == "twofour bench t; twofour bench t --keep"
    assert stored()["notes"] == ["slow"]
    assert stored()["other_cpu_share"] >= 0.25
    Table(SPEC, Earlier.DROP).put([{"a": "y", "b": 1}])
    assert [row["a"] for row in stored()["rows"]] == ["y"]
    assert "notes" not in stored()


def test_rows_of_another_class_of_machines_do_not_stand_beside_new_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Table(SPEC, Earlier.DROP).put([{"a": "x", "b": 1}])
    monkeypatch.setattr(table_module, "machine_class", lambda: "riscv")
    with pytest.raises(StaleRowsError, match=r"machine with .*, this one has riscv; .*--keep"):
        Table(SPEC, Earlier.KEEP)
    assert len(Table(SPEC, Earlier.RESUME).rows()) == 1  # qualities do compare
