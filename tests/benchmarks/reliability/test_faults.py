"""Every fault on a tiny model: `make test-reliability`, or pytest -m reliability."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.reliability.run import FAULTS
from benchmarks.reliability.site import Site
from engines.cpu.build import build
from engines.directory.build import BuildRequest
from tests.engines.conftest import nearby_mask, random_mask
from tests.tiny_model import make_tiny_llama


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the directory `engine` (masks `a`, `b`, `near`) and the files `c` and `d`."""
    folder = tmp_path_factory.mktemp("reliability")
    model = make_tiny_llama(folder / "model", max_position_embeddings=4096)
    files = {
        name: random_mask(model, folder / f"{name}.safetensors", seed=seed)
        for seed, name in enumerate("abcd")
    }
    masks = {"a": files["a"], "b": files["b"]}
    masks["near"] = nearby_mask(files["a"], folder / "near.safetensors", 0.03)
    build(BuildRequest(model, "tiny", masks, folder / "engine"))
    return folder


@pytest.mark.reliability
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost(fault: str, built: Path, tmp_path: Path) -> None:
    site = Site(
        directory=built / "engine",
        model="tiny",
        masks=("a", "b", "near"),
        loadable=(built / "c.safetensors", built / "d.safetensors"),
        parents=(built / "a.safetensors",),
        folder=tmp_path,
        long_tokens=1500,
    )
    row = asyncio.run(FAULTS[fault](site))  # type: ignore[arg-type]
    assert row["problems"] == [], (tmp_path, row)
    assert row["lost"] == 0
    assert row["sent"] == row["answered"] + row["refused"] + row["left"]
    assert row["answered"] + row["refused"] > 0
