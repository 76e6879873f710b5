"""Two transforms in one step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from maskgen.format.digests import base_digest
from maskgen.transform.absorb import apply_transform, with_result
from maskgen.transform.compose import compose
from maskgen.transform.file import Transform
from maskgen.transform.groups import TransformError
from tests.maskgen.transform.random_transforms import random_transform
from tests.maskgen.transform.reference import logits
from tests.tiny_model import make_tiny_llama

IDS = torch.arange(9) * 11


def without_heads(transform: Transform) -> Transform:
    kept = {n: p for n, p in transform.permutations.items() if not n.endswith("_heads")}
    return replace(transform, permutations=kept, result_digest=None)


def test_two_steps_and_one_make_the_same_model(tmp_path: Path) -> None:
    """Byte for byte where only one of them rotates."""
    model = make_tiny_llama(tmp_path / "model")
    for name, rotated in (("first", (True, False)), ("second", (False, False))):
        first = with_result(model, without_heads(random_transform(model, 0, rotate=rotated[0])))
        middle, end = tmp_path / f"{name}-middle", tmp_path / f"{name}-end"
        apply_transform(model, first, middle)
        second = without_heads(random_transform(middle, 1, rotate=rotated[1]))
        digest = apply_transform(middle, second, end)
        both = compose(first, second)
        assert with_result(model, both).result_digest == digest
        assert (both.base_digest, both.method) == (base_digest(model), "random + random")


def test_rotations_after_orders_and_rotations(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model")
    first = with_result(model, without_heads(random_transform(model, 0, rotate=True)))
    apply_transform(model, first, tmp_path / "middle")
    second = without_heads(random_transform(tmp_path / "middle", 1, rotate=True))
    apply_transform(tmp_path / "middle", second, tmp_path / "two")
    apply_transform(model, compose(first, second), tmp_path / "one")
    one, two, none = (logits(tmp_path / name, IDS) for name in ("one", "two", "model"))
    assert (one - none).abs().max() <= 1.2 * (two - none).abs().max()
    assert (one - two).abs().max() < 0.05 * none.abs().max()


def test_what_does_not_follow_is_refused(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model")
    first = with_result(model, random_transform(model))
    with pytest.raises(TransformError, match="the first makes"):
        compose(first, random_transform(model))
    second = replace(random_transform(model), base_digest=first.result_digest or "")
    with pytest.raises(TransformError, match="moves whole heads"):
        compose(first, second)
