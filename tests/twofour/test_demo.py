"""The demo's engine directories, and a request for each mask; on a tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from maskgen.format.mask_file import read_mask, write_mask
from maskgen.transform.file import read_transform
from tests.engines.conftest import nearby_mask, random_mask
from tests.tiny_model import make_tiny_llama
from twofour import shipped_masks
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
    return demo.DemoRun(tmp_path / "out", 1, console, shipped_masks.masks_in(folder), model, masks)


def test_the_domain_mask_is_built_and_asked_beside_the_learned_one(run: demo.DemoRun) -> None:
    demo._build_engines(run)
    demo._ask_each_mask(run)
    text = run.console.export_text()
    assert f"{run.engine('sparse')}: masks learned, {demo.DOMAIN}" in text
    for name in ("learned", demo.DOMAIN):
        assert f"{demo.DEMO_MODEL}:{name} continues" in text


def test_the_learned_masks_are_twofours_own_or_those_asked_for(
    run: demo.DemoRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = demo.learned_masks(None)
    assert next(iter(own.files)) == demo.GENERAL
    assert {demo.DOMAIN, "french"} <= own.files.keys()
    assert own.transform is not None
    base = read_transform(own.transform).result_digest
    general = read_mask(own.files[demo.GENERAL])
    for file in own.files.values():
        assert read_mask(file).base_digest == general.base_digest == base
    assert demo.learned_masks(tmp_path / "masks") == run.learned
    with pytest.raises(FileNotFoundError, match=r"there is no general\.safetensors"):
        demo.learned_masks(tmp_path)
    assert shipped_masks.shipped_masks("another") == shipped_masks.MaskFolder()
    monkeypatch.setattr(shipped_masks, "FOLDERS", (tmp_path / "missing",))
    with pytest.raises(FileNotFoundError, match="install twofour again"):
        demo.learned_masks(None)


def test_a_stage_that_lacks_an_extra_names_it(run: demo.DemoRun) -> None:
    with pytest.raises(demo.StageError), demo._stage(run.console, "2/6", "mask"):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    said = run.console.export_text()
    assert "stage 'mask' failed: this needs torch" in said
    assert "pip install 'twofour[train]'" in said
