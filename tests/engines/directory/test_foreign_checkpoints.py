"""Checkpoints that other tools really wrote (`foreign/make.sh`), and what they must not be."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from engines.directory.import_checkpoint import import_checkpoint
from engines.errors import EngineDirectoryError
from maskgen.format.mask_file import read_mask
from maskgen.format.model_directory import ModelDirectoryError, read_model_config
from tests.engines.conftest import LINEARS

FOREIGN = Path(__file__).parent / "foreign"
KINDS = {
    "llmcompressor-0.1.0": "sparse-bitmask",
    "llmcompressor-0.5.1": "sparse-24-bitmask",
    "modelopt-0.47.0": "dense",
    "torchao-0.18.0": "dense",
}


@pytest.mark.parametrize("name", KINDS)
def test_every_weight_and_zero_is_read(name: str, tmp_path: Path) -> None:
    found = import_checkpoint(FOREIGN / name, tmp_path)
    assert found.kind == KINDS[name]
    assert len(found.found.codes) == len(LINEARS)
    assert not found.dense
    written = load_file(found.model / "model.safetensors")
    if found.kind == "dense":
        source = load_file(FOREIGN / name / "model.safetensors")
        source.pop("lm_head.weight", None)  # tied: the embedding, a second time
        assert written.keys() == source.keys()
        assert all((written[key] == source[key]).all() for key in written)
    else:
        # What the tool had in memory when it saved; a tied head is the embedding.
        digests = json.loads((FOREIGN / name / "dense.json").read_text())
        digests.pop("lm_head.weight")
        assert {key: _digest(values) for key, values in written.items()} == digests
    mask = read_mask(found.mask)
    for layer in mask.codes:
        values = written[f"{layer}.weight"].astype(np.float32)
        assert not values[~mask.keep(layer)].any()
        assert np.count_nonzero(values) > 0.45 * values.size
    read_model_config(found.model)  # nothing says any more that it is compressed


def _digest(values: np.ndarray[Any, Any]) -> str:
    plain = np.where(values == 0, np.zeros_like(values), values)
    return hashlib.sha256(plain.tobytes()).hexdigest()


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind != "dense"])
def test_commands_that_want_weights_name_the_import(name: str) -> None:
    with pytest.raises(ModelDirectoryError, match=r"compressed 2:4 weights .*twofour import"):
        read_model_config(FOREIGN / name)


@pytest.mark.parametrize(
    ("stored", "remedy"),
    [
        ("parametrizations.weight.original", "squash_mask"),
        ("_weight_mask", r"modelopt\.torch\.sparsity\.export"),
    ],
)
def test_zeros_that_are_not_in_the_weights_are_named(
    stored: str, remedy: str, tmp_path: Path
) -> None:
    source = shutil.copytree(FOREIGN / "torchao-0.18.0", tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    layer = "model.layers.0.mlp.up_proj"
    tensors[f"{layer}.{stored}"] = tensors[f"{layer}.weight"]
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(EngineDirectoryError, match=rf"up_proj\.{stored}.*{remedy}.*save it again"):
        import_checkpoint(source, tmp_path)
