"""The demo's engine directories, and a request for each mask; on a tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from maskgen.maskfile import read_mask, write_mask
from tests.engines.conftest import nearby_mask, random_mask
from tests.tiny_model import make_tiny_llama
from twofour.commands import demo


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> demo.DemoRun:
    model = make_tiny_llama(tmp_path / "model")
    folder = tmp_path / "masks"
    folder.mkdir()
    learned = random_mask(model, folder / "general.safetensors")
    near = read_mask(nearby_mask(learned, tmp_path / "near", 0.01))
    write_mask(
        folder / f"{demo.DOMAIN}.safetensors",
        replace(near, domain=demo.DOMAIN),
        parent=read_mask(learned),
    )
    monkeypatch.setattr(demo, "LEARNED_MASK", learned)
    masks = {"learned": learned, "wanda": random_mask(model, tmp_path / "w.safetensors", seed=1)}
    (tmp_path / "out" / "load").mkdir(parents=True)
    console = Console(width=1000, record=True)
    return demo.DemoRun(tmp_path / "out", 1, console, model, masks)


def test_the_domain_mask_is_built_and_asked_beside_the_learned_one(run: demo.DemoRun) -> None:
    demo._build_engines(run)
    demo._ask_each_mask(run)
    text = run.console.export_text()
    assert f"{run.engine('sparse')}: masks learned, {demo.DOMAIN}" in text
    for name in ("learned", demo.DOMAIN):
        assert f"{demo.MODEL}:{name} continues" in text


def test_without_the_learned_mask_one_mask_is_served(
    run: demo.DemoRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "LEARNED_MASK", run.out / "missing.safetensors")
    run.masks = {"wanda": run.masks["wanda"]}
    assert list(demo._served_masks(run)) == ["wanda"]
