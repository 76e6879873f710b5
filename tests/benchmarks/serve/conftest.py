"""Stand-ins for servers, whose speed and answers are known."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common import server_process
from benchmarks.serve import compare
from loadtests.client_calibration import Bias

FAKE = Path(__file__).with_name("fake_twofour.py")
SPARSE = {"sparse_layers": 14, "eligible_layers": 14, "layout": "rows16-v1", "weight_bytes": 60}
DENSE = {"sparse_layers": 0, "eligible_layers": 0, "layout": None, "weight_bytes": 100}
MakeDirectory = Callable[..., Path]


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        server_process,
        "serve_command",
        lambda directory, port, *options: [sys.executable, str(FAKE), str(directory), port],
    )
    monkeypatch.setattr(compare, "calibrate", lambda folder, concurrency: Bias(1.0, 0.5, 0.5))


@pytest.fixture
def directory(tmp_path: Path) -> MakeDirectory:
    """Makes a directory for the stand-in server."""

    def make(name: str, gap_s: float, engine: dict[str, Any], **answers: Any) -> Path:
        common = {"isa": "avx2", "base_digest": "d" * 64, "kernels": {"64x64": "k"}}
        made = tmp_path / name
        made.mkdir()
        content = {"gap_s": gap_s, "engine": common | engine} | answers
        (made / "fake.json").write_text(json.dumps(content))
        return made

    return make
