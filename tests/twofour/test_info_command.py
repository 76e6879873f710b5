"""`twofour info` says what this machine runs, and what it lacks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engines.native import kernels
from twofour.cli import app


def report() -> dict[str, dict[str, object]]:
    result = CliRunner().invoke(app, ["info", "--json"])
    assert result.exit_code == 0, result.output
    facts: dict[str, dict[str, object]] = json.loads(result.stdout.splitlines()[-1])
    return facts


def test_the_machine_and_the_masks_that_come_with_twofour() -> None:
    facts = report()
    assert facts["machine"]["instruction_set"] == kernels.isa()
    assert facts["patterns"]["cpu"] == "2:4 (4:8, 8:16, 16:32 with int8 or int4 values)"
    assert facts["patterns"]["reference"] == "every N:M"
    assert str(facts["masks"]["smollm2-135m"]).startswith("general, ")
    assert (Path(str(facts["masks"]["folder"])) / "general.safetensors").is_file()


def test_a_machine_with_the_portable_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "supported_isas", lambda: ("portable", "avx2"))
    assert "note" not in report()["machine"]
    monkeypatch.setattr(kernels, "supported_isas", lambda: ("portable",))
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    machine = report()["machine"]
    assert machine["processor"] == "aarch64"
    assert "portable kernels only" in str(machine["note"])
