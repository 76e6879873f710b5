"""How the server opens its engine directory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.cpu.build import build
from engines.directory.build import BuildRequest
from engines.errors import EngineDirectoryError
from serving import opening_log
from serving.app import open_engine
from serving.config import ServerSettings
from serving.opening_log import OpeningLog
from tests.engines.conftest import random_mask
from tests.tiny_model import make_tiny_llama


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    model = make_tiny_llama(tmp_path / "model")
    mask = random_mask(model, tmp_path / "mask.safetensors")
    build(BuildRequest(model, "tiny", {"general": mask}, tmp_path / "engine"))
    return tmp_path / "engine"


async def test_a_damaged_directory_is_refused_unless_told_otherwise(directory: Path) -> None:
    path = directory / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)
    with pytest.raises(EngineDirectoryError, match="not the file that was built"):
        open_engine(ServerSettings(directory=directory))
    engine = open_engine(ServerSettings(directory=directory, verify=False))
    await engine.close()


@pytest.mark.parametrize(("interval", "lines"), [(0.0, 3), (1e6, 0)])
def test_only_what_takes_long_is_logged(
    interval: float, lines: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening_log, "INTERVAL_SECONDS", interval)
    log: Callable[[str, int, int], None] = OpeningLog()
    with caplog.at_level(logging.INFO, "serving"):
        for done in range(3):
            log("verifying", done << 30, 4 << 30)
    assert len(caplog.messages) == lines
    if lines:
        assert caplog.messages[-1] == "verifying: 50 % of 4.0 GiB"
