"""The table of a result file: a finished row is on disk before the next one is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from benchmarks.common.machine import OtherCpu
from benchmarks.common.machine_facts import machine_class
from benchmarks.common.result_file import (
    RESULTS,
    Page,
    ResultData,
    ResultRow,
    read_result,
    this_command,
    write_result,
)


class StaleRowsError(ValueError):
    """Rows of the result file do not compare with those that would be added."""


class Earlier(Enum):
    """What becomes of the rows that the result file has already."""

    DROP = "drop"
    KEEP = "keep"
    """They stay unless they are measured again: speeds, of this class of machines alone."""
    RESUME = "resume"
    """They stay and are not measured again: qualities, of the same inputs alone."""


@dataclass(frozen=True)
class TableSpec:
    """What the table of a result is.

    Attributes:
        name: of the result file.
        key: fields that together name a row.
        page: renders the result.
        facts: further fields of the file, given the rows so far.
    """

    name: str
    key: tuple[str, ...]
    page: Page
    facts: Callable[[Sequence[ResultRow]], Mapping[str, Any]] = lambda rows: {}


class Table:
    """Rows of `docs/results/<name>.json`, by their key.

    Args:
        spec: what the table is.
        earlier: what becomes of the rows that are there.
        inputs: name -> digest of everything that the rows depend on (text, model, settings).

    Raises:
        StaleRowsError: the file's rows have other inputs, or are of another class of machines.
    """

    def __init__(
        self, spec: TableSpec, earlier: Earlier, inputs: Mapping[str, str] | None = None
    ) -> None:
        self._spec = spec
        self._earlier = earlier
        self._inputs = dict(inputs or {})
        self._rows: dict[tuple[Any, ...], ResultRow] = {}
        self._commands: list[str] = []
        self._notes: dict[str, Any] = {}
        self.path = RESULTS / f"{spec.name}.json"
        if earlier is not Earlier.DROP and self.path.is_file():
            self._take(read_result(self.path))

    def __getitem__(self, key: tuple[Any, ...]) -> ResultRow:
        return self._rows[key]

    def rows(self) -> list[ResultRow]:
        """All rows so far."""
        return list(self._rows.values())

    def measure(self, key: tuple[Any, ...], measurement: Callable[[], ResultRow]) -> bool:
        """Measure and store the row called `key`; False if it is there and stays."""
        if key in self._rows and self._earlier is Earlier.RESUME:
            return False
        with OtherCpu() as other:
            row = measurement()
        named = dict(zip(self._spec.key, key, strict=True))
        self.put([{**named, **row, "other_cpu_share": round(other.share, 3)}])
        return True

    def put(self, rows: Iterable[ResultRow]) -> Path:
        """Store rows with their own `other_cpu_share`, after those that stay; gives the file."""
        for row in rows:
            key = self._name_of(row)
            self._rows.pop(key, None)
            self._rows[key] = row
        self._commands = list(dict.fromkeys([*self._commands, this_command()]))
        shares = [row["other_cpu_share"] for row in self._rows.values() if "other_cpu_share" in row]
        return write_result(
            self._spec.name,
            self._spec.page,
            self.rows(),
            command="; ".join(self._commands),
            data_digests=self._inputs,
            other_cpu_share=max(shares, default=None),
            **self._spec.facts(self.rows()),
            **self._notes,
        )

    def _take(self, stored: ResultData) -> None:
        if self._earlier is Earlier.KEEP and stored["machine_class"] != machine_class():
            raise StaleRowsError(
                f"the rows of {self.path} were measured on a machine with {stored['machine_class']}"
                f", this one has {machine_class()}; measure all, without --keep"
            )
        old = stored["data_digests"]
        for what in sorted(old.keys() & self._inputs.keys()):
            if old[what] != self._inputs[what]:
                raise StaleRowsError(
                    f"{self.path} was measured with another {what} ({old[what][:16]}..., now "
                    f"{self._inputs[what][:16]}...); give the same one, or measure all with --redo"
                )
        self._inputs = {**old, **self._inputs}
        self._rows = {self._name_of(row): row for row in stored["rows"]}
        self._commands = stored["command"].split("; ")
        self._notes = {"notes": stored["notes"]} if "notes" in stored else {}

    def _name_of(self, row: ResultRow) -> tuple[Any, ...]:
        return tuple(row[field] for field in self._spec.key)
