"""The demo's engine directories, and a request for each mask; on a tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from maskgen.data import TextSet
from maskgen.maskfile import read_mask, write_mask
from tests.engines.conftest import nearby_mask, random_mask
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama
from twofour.commands import demo


@pytest.fixture
def run(tmp_path: Path) -> demo.DemoRun:
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
    masks = {"learned": learned, "wanda": random_mask(model, tmp_path / "w.safetensors", seed=1)}
    (tmp_path / "out" / "load").mkdir(parents=True)
    console = Console(width=1000, record=True)
    return demo.DemoRun(tmp_path / "out", 1, console, folder, model, masks)


def test_the_domain_mask_is_built_and_asked_beside_the_learned_one(run: demo.DemoRun) -> None:
    demo._build_engines(run)
    demo._ask_each_mask(run)
    text = run.console.export_text()
    assert f"{run.engine('sparse')}: masks learned, {demo.DOMAIN}" in text
    for name in ("learned", demo.DOMAIN):
        assert f"{demo.MODEL}:{name} continues" in text


def test_without_the_learned_masks_it_says_what_is_served_instead(
    run: demo.DemoRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskgen.data.load_texts", lambda name: TextSet.of(name, [SAMPLE_TEXT]))
    monkeypatch.setattr(demo, "CALIBRATION_WINDOWS", 2)
    monkeypatch.setattr(demo, "CALIBRATION_LENGTH", 16)
    run.masks, run.learned = {}, None
    demo._make_masks(run)
    assert "no learned masks" in run.console.export_text(clear=False)
    assert "Wanda mask is served instead" in run.console.export_text()
    assert list(demo._served_masks(run)) == ["wanda"]


def test_the_learned_masks_are_the_checkout_s_or_those_asked_for(
    run: demo.DemoRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert demo.learned_masks(None) == demo.MASKS
    assert demo.learned_masks(run.learned) == run.learned
    with pytest.raises(FileNotFoundError, match=r"there is no general\.safetensors"):
        demo.learned_masks(tmp_path)
    monkeypatch.setattr(demo, "MASKS", tmp_path / "installed" / "masks")
    assert demo.learned_masks(None) is None
