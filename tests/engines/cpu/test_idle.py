"""The environment is changed by the commands that own their process, and by nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines.cpu.idle import shorten_spinning


def test_importing_the_engine_leaves_the_environment_alone() -> None:
    code = "import os; before = dict(os.environ); import engines.cpu.engine, engines.registry"
    subprocess.run([sys.executable, "-c", f"{code}; assert dict(os.environ) == before"], check=True)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_what_the_user_set_is_left_alone(
    environment: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(environment))
    shorten_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_serving_sets_it_before_the_native_module_is_loaded(tmp_path: Path) -> None:
    code = (
        "import os, sys, serving.server\n"
        "from twofour.cli import app\n"
        "spins = lambda: os.environ.get('GOMP_SPINCOUNT')\n"
        "serving.server.run = lambda s: print(spins(), 'engines.native._native' in sys.modules)\n"
        f"app(['serve', {str(tmp_path)!r}], standalone_mode=False)"
    )
    environment = {k: v for k, v in os.environ.items() if "OMP" not in k}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["10000", "False"]
