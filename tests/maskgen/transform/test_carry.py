"""Masks on either side of a transform."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from maskgen.apply import apply_mask
from maskgen.format.mask import Mask, MaskFileError
from maskgen.format.model_directory import WEIGHTS_FILE
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import keep_from_codes
from maskgen.prune import PruneSettings, prune
from maskgen.transform.absorb import (
    apply_transform,
    change_weight,
    inverse,
    steps_by_tensor,
    with_result,
)
from maskgen.transform.architectures import model_groups
from maskgen.transform.carry import carry
from maskgen.transform.file import Transform
from tests.maskgen.masks import random_mask
from tests.maskgen.transform.random_transforms import random_transform
from tests.maskgen.transform.reference import logits
from tests.tiny_model import make_tiny_llama

IDS = torch.arange(10) * 7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"))


def moved_keep(mask: Mask, transform: Transform, directory: Path) -> dict[str, torch.Tensor]:
    """Layer name -> what the mask keeps, each weight at its new place."""
    steps = steps_by_tensor(transform, model_groups(directory).groups)
    found = {}
    for name, codes in mask.codes.items():
        keep = keep_from_codes(codes, TWO_FOUR).view(np.uint8).copy()
        change_weight(keep, transform, steps[f"{name}.weight"])
        found[name] = torch.from_numpy(keep).bool()
    return found


def test_a_mask_of_the_result_is_a_sparse_model_of_the_base(model: Path, tmp_path: Path) -> None:
    transform = with_result(model, random_transform(model))
    apply_transform(model, transform, tmp_path / "new")
    mask = prune(tmp_path / "new", None, PruneSettings("magnitude", dtype="fp32")).mask
    apply_mask(tmp_path / "new", mask, tmp_path / "sparse")
    back = inverse(transform, model_groups(model).groups)
    keep = moved_keep(mask, back, tmp_path / "new")
    old = load_file(model / WEIGHTS_FILE)
    for name, kept in keep.items():
        old[f"{name}.weight"] *= kept
    (tmp_path / "old").mkdir()
    for file in model.iterdir():
        (tmp_path / "old" / file.name).write_bytes(file.read_bytes())
    save_file(old, tmp_path / "old" / WEIGHTS_FILE)
    difference = logits(tmp_path / "old", IDS) - logits(tmp_path / "sparse", IDS)
    assert difference.abs().max() < 1e-9


def test_carried_masks_keep_what_fits(model: Path, tmp_path: Path) -> None:
    transform = with_result(model, random_transform(model))
    apply_transform(model, transform, tmp_path / "new")
    mask = prune(model, None, PruneSettings("magnitude", dtype="fp32")).mask
    carried = carry(mask, transform, tmp_path / "new")
    assert carried.mask.base_digest == transform.result_digest
    assert carried.rotated == []
    apply_mask(tmp_path / "new", carried.mask, tmp_path / "sparse")
    kept = total = 0
    for name, moved in moved_keep(mask, transform, model).items():
        groups = moved.reshape(len(moved), -1, 4)
        now = torch.from_numpy(keep_from_codes(carried.mask.codes[name], TWO_FOUR)).view_as(groups)
        both = (now & groups).sum(-1)
        assert torch.equal(both, groups.sum(-1).clamp_max(2))  # nothing kept is given up for others
        kept, total = kept + int(both.sum()), total + int(groups.sum())
    assert carried.kept == kept / total


def test_rows_alone_carry_a_mask_over_whole(model: Path, tmp_path: Path) -> None:
    everything = random_transform(model)
    heads = {n: p for n, p in everything.permutations.items() if n.endswith("heads")}
    transform = Transform(heads, {}, everything.base_digest, "llama", "random", 0)
    transform = with_result(model, transform)
    apply_transform(model, transform, tmp_path / "new")
    mask = prune(model, None, PruneSettings("magnitude", dtype="fp32")).mask
    assert carry(mask, transform, tmp_path / "new").kept == 1.0


def test_rotated_layers_are_named(model: Path, tmp_path: Path) -> None:
    transform = with_result(model, random_transform(model, rotate=True))
    apply_transform(model, transform, tmp_path / "new")
    mask = prune(model, None, PruneSettings("magnitude", dtype="fp32")).mask
    carried = carry(mask, transform, tmp_path / "new")
    rotated = ("self_attn.o_proj", "self_attn.v_proj")
    assert carried.rotated == [f"model.layers.{i}.{name}" for i in range(2) for name in rotated]
    with pytest.raises(MaskFileError, match="belongs to the base model"):
        carry(random_mask(), transform, tmp_path / "new")
