"""Structure files: the same bytes for the same content, and no other content."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from maskgen.format.change_file import ChangeRecord
from maskgen.structure.file import Structure, read_structure, write_structure
from maskgen.structure.width import StructureError, Width
from tests.maskgen.masks import header_end


def a_structure() -> Structure:
    rng = np.random.default_rng(0)
    digests = [hashlib.sha256(text).hexdigest() for text in (b"base", b"text", b"result")]
    kept = {
        **{f"layers.{n}.mlp": np.arange(n, 16, 2, dtype=np.uint16)[:7] for n in range(2)},
        **{f"layers.{n}.kv_heads": np.array([n], dtype=np.uint16) for n in range(2)},
    }
    scales = {name: rng.uniform(0.5, 1, len(k)).astype(np.float32) for name, k in kept.items()}
    factors = rng.random((2, 8), np.float32), rng.random((16, 2), np.float32)
    record = ChangeRecord(digests[0], "llama", "maskprune", 3, digests[1], digests[2])
    return Structure(kept, scales, {"model.layers.0.mlp.up_proj": factors}, record)


def test_round_trip(tmp_path: Path) -> None:
    structure, path = a_structure(), tmp_path / "s.safetensors"
    write_structure(path, structure)
    first = path.read_bytes()
    read = read_structure(path)
    assert read.record == structure.record
    assert read.digest == structure.digest
    assert read.width == Width(7, 1)
    for name, array in structure.tensors().items():
        assert np.array_equal(read.tensors()[name], array)
        assert read.tensors()[name].dtype == array.dtype
    write_structure(path, read)
    assert path.read_bytes() == first


def test_a_result_is_part_of_the_file(tmp_path: Path) -> None:
    structure = a_structure()
    unknown = replace(structure, record=replace(structure.record, result_digest=None))
    with pytest.raises(StructureError, match="digest of the model that it makes"):
        write_structure(tmp_path / "s", unknown)


def test_every_cut_and_many_flips_are_refused(tmp_path: Path) -> None:
    path, rng = tmp_path / "s.safetensors", np.random.default_rng(1)
    write_structure(path, a_structure())
    whole = path.read_bytes()
    for cut in range(0, len(whole), 97):
        path.write_bytes(whole[:cut])
        with pytest.raises(StructureError):
            read_structure(path)
    for place in rng.integers(header_end(path), len(whole), 50):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        with pytest.raises(StructureError, match="digest it states"):
            read_structure(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", "twofour-transform", "does not name twofour-structure"),
        ("required_features", '["bias"]', "requires .'bias'."),
        ("base_digest", "12", "is not a SHA-256"),
        ("architecture", None, "lacks architecture"),
    ],
)
def test_metadata_is_checked(tmp_path: Path, field: str, value: str | None, message: str) -> None:
    path = tmp_path / "s.safetensors"
    write_structure(path, a_structure())
    with safe_open(path, framework="np") as file:
        metadata = dict(file.metadata())
    metadata.pop(field)
    save_file(load_file(path), path, metadata | ({field: value} if value is not None else {}))
    with pytest.raises(StructureError, match=message):
        read_structure(path)


def test_layers_of_different_width_are_refused(tmp_path: Path) -> None:
    structure, path = a_structure(), tmp_path / "s.safetensors"
    uneven = {**structure.kept, "layers.1.mlp": np.arange(3, dtype=np.uint16)}
    write_structure(path, replace(structure, kept=uneven))
    with pytest.raises(StructureError, match=r"same number of mlp units, the file has \[3, 7\]"):
        read_structure(path)


def test_half_a_difference_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    write_structure(path, a_structure())
    structure = a_structure()
    lone = replace(structure, low_rank={"model.layers.0.mlp.up_proj": (np.ones((2, 8), "f4"),) * 2})
    tensors = lone.tensors()
    del tensors["model.layers.0.mlp.up_proj.second"]
    with safe_open(path, framework="np") as file:
        metadata = dict(file.metadata())
    from maskgen.format.change_file import content_digest

    metadata["structure_digest"] = content_digest(structure.record.base_digest, tensors)
    save_file(tensors, path, metadata)
    with pytest.raises(StructureError, match="one of the two factors"):
        read_structure(path)
