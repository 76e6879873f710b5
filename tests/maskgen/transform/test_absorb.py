"""Transforms leave answers alone: held to a reference of our own in fp64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from maskgen.format.digests import base_digest
from maskgen.format.model_directory import WEIGHTS_FILE
from maskgen.transform import absorb
from maskgen.transform.absorb import BESIDE, apply_transform, inverse, transformed, with_result
from maskgen.transform.architectures import ModelGroups, model_groups
from maskgen.transform.file import Transform, read_transform, write_transform
from maskgen.transform.groups import PermutationGroup, Place, TransformError
from maskgen.transform.verify import check_exact, compare_answers
from tests.maskgen.transform.random_transforms import random_transform
from tests.maskgen.transform.reference import logits
from tests.maskgen.transform.shapes import SHAPES
from tests.tiny_model import make_tiny_llama

IDS = torch.tensor([5, 17, 250, 9, 9, 101, 33, 2, 64, 77, 120, 4])


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    return make_tiny_llama(directory, **SHAPES[request.param])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("llama"))


def in_fp64(directory: Path, out: Path) -> Path:
    """The same model, stored in fp64."""
    out.mkdir()
    for file in directory.iterdir():
        if file.name != WEIGHTS_FILE:
            (out / file.name).write_bytes(file.read_bytes())
    tensors = load_file(directory / WEIGHTS_FILE)
    save_file({name: tensor.double() for name, tensor in tensors.items()}, out / WEIGHTS_FILE)
    return out


def test_the_reference_is_the_model(model: Path) -> None:
    from maskgen.torch_model import load_model

    with torch.inference_mode():
        expected = load_model(model, "fp32", "cpu")(IDS[None]).logits[0]
    assert (logits(model, IDS) - expected).abs().max() < 1e-3


def test_random_orders_in_every_group_at_once_leave_answers_alone(
    model: Path, tmp_path: Path
) -> None:
    before = logits(model, IDS)
    transform = with_result(model, random_transform(model))
    digest = apply_transform(model, transform, tmp_path / "out")
    assert digest == base_digest(tmp_path / "out") == transform.result_digest
    assert digest != transform.base_digest
    difference = (logits(tmp_path / "out", IDS) - before).abs().max()
    assert 0 < difference < 1e-9
    old, new = load_file(model / WEIGHTS_FILE), load_file(tmp_path / "out" / WEIGHTS_FILE)
    assert old.keys() == new.keys()
    for name, tensor in old.items():  # moved, and not one bit changed
        assert torch.equal(
            tensor.float().flatten().sort()[0], new[name].float().flatten().sort()[0]
        )
    assert read_transform(tmp_path / "out" / BESIDE).digest == transform.digest


def test_the_inverse_gives_the_same_bytes(model: Path, tmp_path: Path) -> None:
    transform = with_result(model, random_transform(model, seed=1))
    apply_transform(model, transform, tmp_path / "out")
    back = inverse(transform, model_groups(model).groups)
    apply_transform(tmp_path / "out", back, tmp_path / "back")
    assert (tmp_path / "back" / WEIGHTS_FILE).read_bytes() == (model / WEIGHTS_FILE).read_bytes()


def test_rotations_leave_answers_alone_before_rounding(model: Path, tmp_path: Path) -> None:
    wide = in_fp64(model, tmp_path / "wide")
    before = logits(wide, IDS)
    transform = random_transform(wide, seed=2, rotate=True)
    apply_transform(wide, transform, tmp_path / "out")
    assert (logits(tmp_path / "out", IDS) - before).abs().max() < 1e-4  # fp32 rotations
    with pytest.raises(TransformError, match="cannot be undone"):
        inverse(transform.with_result("0" * 64), model_groups(wide).groups)
    rounded = random_transform(model, seed=2, rotate=True)
    apply_transform(model, rounded, tmp_path / "rounded")
    moved = (logits(tmp_path / "rounded", IDS) - before).abs().max()
    assert moved < 0.05 * before.abs().max()  # what rounding to bf16 costs


def untied(model: ModelGroups) -> ModelGroups:
    """A table with the error of giving every query head an order of its own."""
    groups = dict(model.groups)
    for name, group in model.groups.items():
        if name.endswith(".value"):
            (place,) = group.readers
            heads = group.blocks * place.repeat
            readers = (Place(place.tensor, place.axis),)
            groups[name] = PermutationGroup(name, heads, group.size, readers, ())
    return ModelGroups(model.architecture, groups)


def test_an_order_that_differs_among_query_heads_changes_answers(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = untied(model_groups(llama))
    monkeypatch.setattr(absorb, "model_groups", lambda directory: wrong)
    group = wrong.groups["layers.0.value"]
    rng = np.random.default_rng(0)
    order = np.tile(np.arange(group.size, dtype=np.uint16), (group.blocks, 1))
    permutations = {group.name: rng.permuted(order, axis=1)}
    transform = Transform(permutations, {}, base_digest(llama), "llama", "random", 0)
    apply_transform(llama, transform, tmp_path / "out")
    with pytest.raises(TransformError, match="answers otherwise"):
        check_exact(compare_answers(llama, tmp_path / "out", IDS.numpy()))


def test_exact_orders_pass_the_check(llama: Path, tmp_path: Path) -> None:
    apply_transform(llama, random_transform(llama), tmp_path / "out")
    difference = compare_answers(llama, tmp_path / "out", IDS.numpy())
    check_exact(difference)
    assert (difference.changed, difference.positions) == (0, len(IDS))


def test_the_same_file_makes_the_same_model_once(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWOFOUR_CACHE", str(tmp_path / "cache"))
    transform = with_result(llama, random_transform(llama, rotate=True))
    write_transform(tmp_path / "t.safetensors", transform)
    first = transformed(llama, tmp_path / "t.safetensors")
    stamp = (first / WEIGHTS_FILE).stat().st_mtime_ns
    assert transformed(llama, tmp_path / "t.safetensors") == first
    assert (first / WEIGHTS_FILE).stat().st_mtime_ns == stamp
    assert base_digest(first) == transform.result_digest


def test_another_result_is_refused(llama: Path, tmp_path: Path) -> None:
    transform = random_transform(llama).with_result("0" * 64)
    with pytest.raises(TransformError, match="this machine made"):
        apply_transform(llama, transform, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def wrong_transforms(right: Transform) -> Iterator[tuple[Transform, str]]:
    residual = right.permutations["residual"]
    yield replace(right, base_digest="0" * 64), "belongs to the base model"
    yield replace(right, architecture="qwen3"), "is for a qwen3 model"
    yield replace(right, permutations={"layers.7.mlp": residual}), "no group layers.7.mlp"
    yield replace(right, permutations={"residual": residual[:, :-4]}), r"expected uint16 \[1, 64\]"
    yield replace(right, permutations={"residual": residual * 0}), "list every channel once"
    eye = np.eye(64, dtype=np.float32)[None]
    yield replace(right, rotations={"residual": eye}), "cannot be rotated"
    values = right.rotations["layers.0.value"]
    yield replace(right, rotations={"layers.0.value": values * 1.1}), "not orthogonal"
    yield replace(right, rotations={"layers.0.value": values * np.nan}), "not orthogonal"
    yield replace(right, rotations={"layers.0.value": values[:1]}), "expected float32"


def test_what_does_not_fit_is_refused(llama: Path, tmp_path: Path) -> None:
    for transform, message in wrong_transforms(random_transform(llama, rotate=True)):
        with pytest.raises(TransformError, match=message):
            apply_transform(llama, transform, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
