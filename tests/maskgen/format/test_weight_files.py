from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from maskgen.format.model_directory import ModelDirectoryError
from maskgen.format.weight_files import (
    EMBEDDING,
    HEAD,
    embedding_and_head,
    refuse_other_weights,
    stored_tensors,
    weight_files,
)

TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)


def write_index(directory: Path, weight_map: dict[str, Any]) -> None:
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_one_file_or_the_shards_that_the_index_names(tmp_path: Path) -> None:
    for name in ("b", "a", "stale"):
        save_file({name: TABLE}, tmp_path / f"{name}.safetensors")
    write_index(tmp_path, {"b": "b.safetensors", "a": "a.safetensors"})
    assert [path.name for path in weight_files(tmp_path)] == ["a.safetensors", "b.safetensors"]
    tensors = stored_tensors(tmp_path)
    assert {name: tensor.file.name for name, tensor in tensors.items()} == {
        "a": "a.safetensors",
        "b": "b.safetensors",
    }
    assert b"".join(tensors["a"].chunks()) == TABLE.tobytes()
    single = tmp_path / "single"
    single.mkdir()
    save_file({"a": TABLE}, single / "model.safetensors")
    assert [path.name for path in weight_files(single)] == ["model.safetensors"]
    write_index(single, {"a": "model.safetensors"})
    assert list(stored_tensors(single)) == ["a"]


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "no weight_map"),
        ([], "no weight_map"),
        ({"a": "../model.safetensors"}, "outside its own directory: '../model"),
        ({"a": "/etc/passwd"}, "outside its own directory"),
        ({"a": 3}, "outside its own directory: 3"),
        ({"a": "c.safetensors"}, "names c.safetensors, which is missing"),
        ({"a": "a.safetensors", "b": "a.safetensors"}, "names the tensor b, which no file holds"),
        ({"a": "a.safetensors", "b": "same.safetensors"}, "repeats the tensor a"),
    ],
)
def test_an_index_that_does_not_fit(tmp_path: Path, weight_map: Any, message: str) -> None:
    for name in ("a", "same"):
        save_file({"a": TABLE}, tmp_path / f"{name}.safetensors")
    write_index(tmp_path, weight_map)
    with pytest.raises(ModelDirectoryError, match=message):
        stored_tensors(tmp_path)


def test_two_sets_of_weights_are_refused(tmp_path: Path) -> None:
    save_file({"a": TABLE}, tmp_path / "model.safetensors")
    save_file({"a": TABLE + 1}, tmp_path / "model-00001-of-00001.safetensors")
    write_index(tmp_path, {"a": "model-00001-of-00001.safetensors"})
    with pytest.raises(ModelDirectoryError, match="two sets of weights"):
        weight_files(tmp_path)


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match="there is no model directory"):
        weight_files(tmp_path / "missing")
    with pytest.raises(ModelDirectoryError, match=r"neither model\.safetensors"):
        weight_files(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelDirectoryError, match="never unpickles"):
        weight_files(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(ModelDirectoryError, match="is not a safetensors file"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize(
    ("tied", "head", "expected"),
    [
        (True, None, (EMBEDDING, EMBEDDING)),
        (True, TABLE, (EMBEDDING, EMBEDDING)),
        (True, TABLE + 1, (EMBEDDING, HEAD)),
        (True, TABLE.astype(np.float16), (EMBEDDING, HEAD)),
        (False, TABLE, (EMBEDDING, HEAD)),
        (None, None, (EMBEDDING, HEAD)),
    ],
)
def test_a_head_of_its_own_is_no_tied_one(
    tmp_path: Path, tied: bool | None, head: Any, expected: tuple[str, str]
) -> None:
    weights = {EMBEDDING: TABLE} | ({} if head is None else {HEAD: head})
    save_file(weights, tmp_path / "model.safetensors")
    assert embedding_and_head(stored_tensors(tmp_path), tied=tied) == expected


def test_a_tied_table_that_is_stored_as_the_head(tmp_path: Path) -> None:
    save_file({HEAD: TABLE}, tmp_path / "model.safetensors")
    assert embedding_and_head(stored_tensors(tmp_path), tied=True) == (HEAD, HEAD)


def test_other_weights_are_named(tmp_path: Path) -> None:
    refuse_other_weights(tmp_path, (), ())
    with pytest.raises(ModelDirectoryError, match=r"2 are missing, such as a$"):
        refuse_other_weights(tmp_path, ("b", "a"), ())
    with pytest.raises(ModelDirectoryError, match=r"1 are missing.*1 do not belong to it"):
        refuse_other_weights(tmp_path, ("b",), ("c",))
