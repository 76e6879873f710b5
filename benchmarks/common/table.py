"""Tables that are measured row by row: a finished row is written at once and not measured again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.common.machine import OtherCpu
from benchmarks.common.result_file import RESULTS, write_result

Row = dict[str, Any]


class StaleRowsError(ValueError):
    """Rows of the result file were measured on other data, or on another model."""


class Table:
    """Rows of `docs/results/<name>.json`, by a key.

    Args:
        name: of the result file.
        key: fields that together name a row.
        command: what to run to get the file again.
        inputs: name -> digest of everything that the rows depend on (text, model, settings).
        redo: measure rows again although they are there.

    Raises:
        StaleRowsError: the file's rows have other inputs, and `redo` is off.
    """

    def __init__(
        self,
        name: str,
        key: tuple[str, ...],
        command: str,
        inputs: Mapping[str, str],
        redo: bool = False,
    ) -> None:
        self._name = name
        self._key = key
        self._command = command
        self._inputs = dict(inputs)
        self._rows: dict[tuple[Any, ...], Row] = {}
        path = RESULTS / f"{name}.json"
        if redo or not path.is_file():
            return
        stored = json.loads(path.read_text(encoding="utf-8"))
        old = stored["data_digests"]
        for what in sorted(old.keys() & self._inputs.keys()):
            if old[what] != self._inputs[what]:
                raise StaleRowsError(
                    f"{path} was measured with another {what} ({old[what][:16]}..., now "
                    f"{self._inputs[what][:16]}...); give the same one, or measure all with --redo"
                )
        self._inputs = {**old, **self._inputs}
        self._rows = {self._name_of(row): row for row in stored["rows"]}

    def __getitem__(self, key: tuple[Any, ...]) -> Row:
        return self._rows[key]

    def measure(self, key: tuple[Any, ...], measurement: Callable[[], Row]) -> bool:
        """Measure and store the row called `key`, unless it is there; says whether it measured."""
        if key in self._rows:
            return False
        with OtherCpu() as other:
            row = measurement()
        named = dict(zip(self._key, key, strict=True))
        self._rows[key] = {**named, **row, "other_cpu_share": round(other.share, 3)}
        shares = [r["other_cpu_share"] for r in self._rows.values()]
        write_result(
            self._name,
            self._command,
            list(self._rows.values()),
            self._inputs,
            other_cpu_share=max(shares),
        )
        return True

    def rows(self) -> list[Row]:
        """All rows so far."""
        return list(self._rows.values())

    def _name_of(self, row: Row) -> tuple[Any, ...]:
        return tuple(row[field] for field in self._key)
