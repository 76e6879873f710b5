"""Transform files: the same bytes for the same content, and no other content."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from maskgen.transform.file import Transform, read_transform, write_transform
from maskgen.transform.groups import TransformError
from tests.maskgen.masks import header_end


def a_transform() -> Transform:
    rng = np.random.default_rng(0)
    order = rng.permutation(16).astype(np.uint16)[None]
    turned = np.linalg.qr(rng.standard_normal((2, 8, 8)))[0].astype(np.float32)
    digests = [hashlib.sha256(text).hexdigest() for text in (b"base", b"text", b"result")]
    return Transform(
        {"residual": order, "layers.0.mlp": order[:, ::-1].copy()},
        {"layers.0.value": turned},
        base_digest=digests[0],
        architecture="llama",
        method="assignment",
        seed=3,
        calibration_digest=digests[1],
        result_digest=digests[2],
    )


def test_round_trip(tmp_path: Path) -> None:
    transform, path = a_transform(), tmp_path / "t.safetensors"
    write_transform(path, transform)
    first = path.read_bytes()
    read = read_transform(path)
    assert read.digest == transform.digest
    for name, array in transform.tensors().items():
        assert np.array_equal(read.tensors()[name], array)
        assert read.tensors()[name].dtype == array.dtype
    labels = ("base_digest", "architecture", "method", "seed", "calibration_digest")
    for label in (*labels, "result_digest"):
        assert getattr(read, label) == getattr(transform, label)
    write_transform(path, read)
    assert path.read_bytes() == first


def test_a_result_is_part_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(TransformError, match="digest of the model that it makes"):
        write_transform(tmp_path / "t", a_transform().with_result(None))  # type: ignore[arg-type]


def test_every_cut_and_many_flips_are_refused(tmp_path: Path) -> None:
    path, rng = tmp_path / "t.safetensors", np.random.default_rng(1)
    write_transform(path, a_transform())
    whole = path.read_bytes()
    for cut in range(0, len(whole), 97):
        path.write_bytes(whole[:cut])
        with pytest.raises(TransformError):
            read_transform(path)
    for place in rng.integers(header_end(path.with_name(path.name)), len(whole), 50):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        with pytest.raises(TransformError, match="digest it states"):
            read_transform(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", "twofour-mask", "does not name twofour-transform"),
        ("format_version", "2", "update twofour"),
        ("required_features", '["shear"]', "requires .'shear'."),
        ("required_features", "{", "not a JSON list"),
        ("seed", "-1", "is not an integer"),
        ("base_digest", "12", "is not a SHA-256"),
        ("method", None, "lacks method"),
    ],
)
def test_metadata_is_checked(tmp_path: Path, field: str, value: str | None, message: str) -> None:
    path = tmp_path / "t.safetensors"
    write_transform(path, a_transform())
    with safe_open(path, framework="np") as file:
        metadata = dict(file.metadata())
    metadata.pop(field)
    save_file(load_file(path), path, metadata | ({field: value} if value is not None else {}))
    with pytest.raises(TransformError, match=message):
        read_transform(path)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("residual.permutation", np.zeros((1, 4), np.float32), r"expected U16 of 2"),
        ("residual.permutation", np.zeros(4, np.uint16), r"expected U16 of 2"),
        ("residual.scale", np.zeros(4, np.uint16), "neither a permutation nor a rotation"),
        ("../x.permutation", np.zeros((1, 4), np.uint16), "neither a permutation"),
    ],
)
def test_tensors_are_checked(
    tmp_path: Path,
    name: str,
    array: np.ndarray,
    message: str,  # type: ignore[type-arg]
) -> None:
    path = tmp_path / "t.safetensors"
    write_transform(path, a_transform())
    with safe_open(path, framework="np") as file:
        metadata = dict(file.metadata())
    save_file({name: array}, path, metadata)
    with pytest.raises(TransformError, match=message):
        read_transform(path)
