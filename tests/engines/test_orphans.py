"""Checkpoints of other tools: what is read, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from engines.checkpoint import Checkpoint
from engines.errors import EngineDirectoryError
from engines.orphans import import_checkpoint
from engines.reference import ReferenceEngine
from maskgen.maskfile import base_digest, read_mask
from maskgen.patterns import keep_from_codes, project
from tests.engines.conftest import LINEARS
from twofour.cli import app

Tensors = dict[str, np.ndarray[Any, Any]]
BITMASK_CONFIG = {
    "quant_method": "compressed-tensors",
    "sparsity_config": {"format": "sparse-24-bitmask", "sparsity_structure": "2:4"},
}


def pruned(model: Path) -> tuple[Tensors, Tensors]:
    """The tensors of `model` with its linear layers 2:4, and their keep masks."""
    tensors = load_file(model / "model.safetensors")
    keeps = {}
    for name, value in tensors.items():
        if name.removesuffix(".weight").endswith(LINEARS):
            keep = keep_from_codes(project(np.abs(value.astype(np.float32))))
            value = value.copy()
            value[~keep] = -0.0
            tensors[name], keeps[name.removesuffix(".weight")] = value, keep
    return tensors, keeps


def write_model(model: Path, out: Path, tensors: Tensors, **config: Any) -> Path:
    out.mkdir()
    for path in model.iterdir():
        if path.suffix == ".json":
            (out / path.name).write_text(path.read_text())
    settings = json.loads((model / "config.json").read_text()) | config
    (out / "config.json").write_text(json.dumps(settings))
    save_file(tensors, out / "model.safetensors")
    return out


def bitmask_model(model: Path, out: Path, suffix: str = "") -> tuple[Path, Tensors, Tensors]:
    """A checkpoint as compressed-tensors wrote them; its dense form; the keep masks."""
    dense, keeps = pruned(model)
    tensors = dict(dense)
    for layer, keep in keeps.items():
        value = tensors.pop(f"{layer}.weight")
        n, k = value.shape
        # Dropped places are zero, so picking by the bitmask is what their compressor did.
        tensors[f"{layer}{suffix}.compressed"] = value[keep].reshape(n, k // 2)
        tensors[f"{layer}{suffix}.bitmask"] = np.packbits(keep, axis=-1, bitorder="little")
        tensors[f"{layer}{suffix}.shape"] = np.array([[n], [k]], np.int64)
    return write_model(model, out, tensors, quantization_config=BITMASK_CONFIG), dense, keeps


def check_import(found: Any, dense: Tensors, keeps: Tensors) -> None:
    mask = read_mask(found.mask)
    assert set(found.sparse_layers) == set(mask.codes) == set(keeps)
    assert mask.base_digest == base_digest(found.model)
    written = load_file(found.model / "model.safetensors")
    assert written.keys() == dense.keys()
    for name, value in dense.items():
        assert np.array_equal(written[name].astype(np.float32), value.astype(np.float32))
        if name.removesuffix(".weight") in keeps:
            bits = written[name].view(np.uint16)
            assert not (bits == 0x8000).any(), "-0.0 survived"
            # Ties between zeros may be kept elsewhere; nothing that is not zero may be lost.
            keep = keep_from_codes(mask.codes[name.removesuffix(".weight")])
            assert not value[~keep].astype(np.float32).any()
    assert "quantization_config" not in Checkpoint(found.model).config


@pytest.mark.parametrize("suffix", ["", ".weight"])
def test_sparse_24_bitmask(tiny_model: Path, tmp_path: Path, suffix: str) -> None:
    source, dense, keeps = bitmask_model(tiny_model, tmp_path / "source", suffix)
    (tmp_path / "out").mkdir()
    found = import_checkpoint(source, tmp_path / "out")
    assert found.kind == "sparse-24-bitmask"
    check_import(found, dense, keeps)


def test_dense_checkpoint_that_is_24(tiny_model: Path, tmp_path: Path) -> None:
    dense, keeps = pruned(tiny_model)
    odd = "model.layers.1.mlp.down_proj"
    dense[f"{odd}.weight"][3, 4:8] = 1.0
    del keeps[odd]
    source = write_model(tiny_model, tmp_path / "source", dense)
    (tmp_path / "out").mkdir()
    found = import_checkpoint(source, tmp_path / "out", domain="code")
    assert found.kind == "dense"
    assert found.dense_layers == {odd: 1}
    check_import(found, dense, keeps)
    assert read_mask(found.mask).domain == "code"


def test_command_builds_an_engine_that_opens(tiny_model: Path, tmp_path: Path) -> None:
    source, _, keeps = bitmask_model(tiny_model, tmp_path / "source")
    out = tmp_path / "out"
    arguments = ["import", str(source), "--out", str(out), "--target", "reference"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert f"{len(keeps)} 2:4 layers" in result.output
    info = ReferenceEngine(out / "engine").describe()
    assert info.model == "source"
    assert [m.name for m in info.masks] == ["general"]


def test_command_leaves_nothing_behind_when_it_fails(tiny_model: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["import", str(tiny_model), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, EngineDirectoryError)
    assert "no 2:4 layer" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_dense_model_is_refused_with_the_closest_layer(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineDirectoryError, match=r"closest, model\.layers.* has \d+ groups"):
        import_checkpoint(tiny_model, tmp_path)


def _damage(name: str, change: Any) -> Any:
    def apply(tensors: Tensors) -> None:
        key = next(k for k in tensors if k.endswith(name))
        tensors[key] = change(tensors[key])

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_damage(".bitmask", lambda b: np.full_like(b, 0b00010111)), "keeps 3 of 4|keeps 1 of 4"),
        (_damage(".bitmask", lambda b: b[:, :-1].copy()), "needs"),
        (_damage(".bitmask", lambda b: b.view(np.int8)), "expected uint8"),
        (_damage(".compressed", lambda c: c[:-1].copy()), "needs"),
        (_damage(".compressed", lambda c: c.view(np.int16)), "bf16, f16 and f32"),
        (_damage(".shape", lambda s: s[:1].copy()), "shape"),
        (_damage(".shape", lambda s: -s), "shape"),
    ],
)
def test_damaged_checkpoints(tiny_model: Path, tmp_path: Path, damage: Any, message: str) -> None:
    source, _, _ = bitmask_model(tiny_model, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    damage(tensors)
    save_file(tensors, source / "model.safetensors")
    (tmp_path / "out").mkdir()
    with pytest.raises(EngineDirectoryError, match=message):
        import_checkpoint(source, tmp_path / "out")


def test_missing_part_and_quantised_models_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    source, _, _ = bitmask_model(tiny_model, tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    del tensors[next(k for k in tensors if k.endswith(".compressed"))]
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(EngineDirectoryError, match="without"):
        import_checkpoint(source, tmp_path)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"]["config_groups"] = {"group_0": {}}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineDirectoryError, match="quantised"):
        import_checkpoint(source, tmp_path)


def test_other_types(tiny_model: Path, tmp_path: Path) -> None:
    """Weights in float16, as many of these checkpoints are."""
    dense, _ = pruned(tiny_model)
    half = {k: v.astype(np.float16) for k, v in dense.items()}
    assert next(iter(dense.values())).dtype == ml_dtypes.bfloat16
    source = write_model(tiny_model, tmp_path / "source", half)
    (tmp_path / "out").mkdir()
    found = import_checkpoint(source, tmp_path / "out")
    assert load_file(found.model / "model.safetensors").popitem()[1].dtype == np.float16
