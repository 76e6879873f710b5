"""Learned changes carried over to another mask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from maskgen.format.mask import Mask, MaskFileError
from maskgen.format.mask_file import read_mask, write_mask
from maskgen.graft import graft
from tests.maskgen.masks import random_mask
from twofour.cli import app


@pytest.fixture
def masks() -> tuple[Mask, Mask, Mask]:
    """(onto, learned, prior); learned differs from prior in some groups."""
    onto, prior = random_mask(1), random_mask(2)
    codes = {name: np.array(c) for name, c in prior.codes.items()}
    for changed in codes.values():
        changed.reshape(-1)[::7] = (changed.reshape(-1)[::7] + 1) % 6
    return onto, replace(prior, codes=codes), prior


def test_groups_that_learning_changed_are_taken_and_no_others(masks):
    onto, learned, prior = masks
    grafted = graft(onto, learned, prior)
    for name, codes in grafted.codes.items():
        changed = learned.codes[name] != prior.codes[name]
        assert changed.any()
        assert (codes[changed] == learned.codes[name][changed]).all()
        assert (codes[~changed] == onto.codes[name][~changed]).all()


def test_onto_its_own_prior_it_gives_the_learned_mask(masks):
    _, learned, prior = masks
    assert graft(prior, learned, prior).digest == learned.digest


def test_masks_of_another_model_are_refused(masks):
    onto, learned, prior = masks
    with pytest.raises(MaskFileError, match="different models"):
        graft(replace(onto, base_digest="0" * 64), learned, prior)


def test_the_command_writes_the_file(masks, tmp_path: Path):
    files = {}
    for name, mask in zip(("onto", "learned", "prior"), masks, strict=True):
        files[name] = tmp_path / f"{name}.safetensors"
        write_mask(files[name], mask)
    words = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    out = tmp_path / "out.safetensors"
    result = CliRunner().invoke(app, ["mask", "graft", *words, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert read_mask(out).digest == graft(*masks).digest
