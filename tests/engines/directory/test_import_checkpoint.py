"""Checkpoints of other tools: what is read, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from engines.directory.build import BuildRequest
from engines.directory.checkpoint import Checkpoint
from engines.directory.import_checkpoint import import_checkpoint
from engines.errors import EngineDirectoryError, MaskError
from engines.reference.engine import ReferenceEngine
from engines.registry import run_builder
from maskgen.format.coverage import DenseWeight
from maskgen.format.digests import base_digest
from maskgen.format.mask_file import read_mask
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import keep_from_codes, project
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
            keep = keep_from_codes(project(np.abs(value.astype(np.float32)), TWO_FOUR), TWO_FOUR)
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
    assert set(found.found.codes) == set(mask.codes) == set(keeps)
    assert mask.decoder_weights == 73728
    assert mask.base_digest == base_digest(found.model)
    written = load_file(found.model / "model.safetensors")
    assert written.keys() == dense.keys()
    for name, value in dense.items():
        assert np.array_equal(written[name].astype(np.float32), value.astype(np.float32))
        if name.removesuffix(".weight") in keeps:
            bits = written[name].view(np.uint16)
            assert not (bits == 0x8000).any(), "-0.0 survived"
            # Ties between zeros may be kept elsewhere; nothing that is not zero may be lost.
            keep = keep_from_codes(mask.codes[name.removesuffix(".weight")], TWO_FOUR)
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
    assert found.dense == {
        odd: DenseWeight("1 of 2,048 groups (0.1 %) keep more than two of four weights", 64 * 128)
    }
    assert len(found.notes) == 1
    assert found.notes[0].startswith(f"{odd} was 2:4 once and had pruned places refilled")
    check_import(found, dense, keeps)
    assert read_mask(found.mask).domain == "code"


def test_command_builds_an_engine_that_opens(tiny_model: Path, tmp_path: Path) -> None:
    source, _, keeps = bitmask_model(tiny_model, tmp_path / "source")
    out = tmp_path / "out"
    arguments = ["import", str(source), "--out", str(out), "--target", "reference"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert f"{len(keeps)} 2:4 layers" in result.output
    assert "masks 73,728 of the decoder's 73,728 weights (100 %)" in result.output
    info = ReferenceEngine(out / "engine").describe()
    assert info.model == "source"
    assert [m.name for m in info.masks] == ["general"]


def test_command_leaves_nothing_behind_when_it_fails(tiny_model: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["import", str(tiny_model), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, EngineDirectoryError)
    assert "no 2:4 layer" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_dense_model_is_refused_with_the_closest_layer(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineDirectoryError, match=r"closest is model\.layers.*: .* groups"):
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


def flat_model(model: Path, out: Path, *, everything: bool) -> tuple[Path, Tensors, Tensors]:
    """A checkpoint in `sparse-bitmask`: every tensor (0.5.0), or the linears alone (0.9.4)."""
    dense, keeps = pruned(model)
    tensors: Tensors = {}
    for name, value in dense.items():
        layer = name.removesuffix(".weight")
        if not everything and layer not in keeps:
            tensors[name] = value
            continue
        keep = value.astype(np.float32) != 0
        counts = np.asarray(np.count_nonzero(keep, axis=-1))
        offsets = np.cumsum(counts) - counts if keep.ndim > 1 else np.array(0)
        prefix = name if everything else layer
        tensors[f"{prefix}.compressed"] = value[keep]
        tensors[f"{prefix}.bitmask"] = np.packbits(keep, axis=-1, bitorder="little")
        tensors[f"{prefix}.shape"] = np.array(value.shape, np.int64)
        tensors[f"{prefix}.row_offsets"] = offsets.astype(np.int64)
    config = {"sparsity_config": {"format": "sparse-bitmask", "sparsity_structure": "2:4"}}
    return write_model(model, out, tensors, compression_config=config), dense, keeps


@pytest.mark.parametrize("everything", [True, False])
def test_sparse_bitmask_that_is_24(tiny_model: Path, tmp_path: Path, everything: bool) -> None:
    source, dense, keeps = flat_model(tiny_model, tmp_path / "source", everything=everything)
    (tmp_path / "out").mkdir()
    found = import_checkpoint(source, tmp_path / "out")
    assert found.kind == "sparse-bitmask"
    check_import(found, dense, keeps)


def test_sparse_bitmask_that_is_not_24(tiny_model: Path, tmp_path: Path) -> None:
    """Of an unstructured checkpoint nothing is imported, and no refilling is suspected."""
    dense = load_file(tiny_model / "model.safetensors")
    rng = np.random.default_rng(0)
    for value in dense.values():
        value[rng.random(value.shape) < 0.5] = 0
    source = write_model(tiny_model, tmp_path / "source", dense)
    with pytest.raises(EngineDirectoryError, match=r"closest is .*more than two of four weights$"):
        import_checkpoint(source, tmp_path)


def test_refilled_layers_are_named_with_their_share(tiny_model: Path, tmp_path: Path) -> None:
    dense, keeps = pruned(tiny_model)
    rng = np.random.default_rng(0)
    for layer in keeps:
        value = dense[f"{layer}.weight"]
        refill = (rng.random(value.shape) < 0.05) & (value.astype(np.float32) == 0)
        value[refill] = 0.01
    source = write_model(tiny_model, tmp_path / "source", dense)
    with pytest.raises(
        EngineDirectoryError, match=r"groups \((8|9|1\d)\.\d %\) keep more.*14 layers were 2:4 once"
    ):
        import_checkpoint(source, tmp_path)


def test_a_weight_that_is_no_number_names_its_tensor(tiny_model: Path, tmp_path: Path) -> None:
    for place, value in (("source", np.nan), ("other", np.inf)):
        dense, _ = pruned(tiny_model)
        dense["model.layers.0.mlp.up_proj.weight"][0, :4] = [value, 0, 0, 0]
        source = write_model(tiny_model, tmp_path / place, dense)
        with pytest.raises(EngineDirectoryError, match=r"layers\.0\.mlp\.up_proj\.weight .* NaN"):
            import_checkpoint(source, tmp_path)
    assert not (tmp_path / "model").exists()


def test_names_without_their_prefix(tiny_model: Path, tmp_path: Path) -> None:
    """As `AutoModel.save_pretrained` writes them: `layers.0...` for `model.layers.0...`."""
    dense, keeps = pruned(tiny_model)
    bare = {name.removeprefix("model."): value for name, value in dense.items()}
    source = write_model(tiny_model, tmp_path / "source", bare)
    (tmp_path / "out").mkdir()
    found = import_checkpoint(source, tmp_path / "out")
    check_import(found, dense, keeps)
    assert "lacked their prefix" in found.notes[0]
    untied = write_model(tiny_model, tmp_path / "untied", bare, tie_word_embeddings=False)
    with pytest.raises(EngineDirectoryError, match="without its output head"):
        import_checkpoint(untied, tmp_path)


def test_experts_are_imported_for_the_cpu_alone(mixtral: Path, tmp_path: Path) -> None:
    tensors = load_file(mixtral / "model.safetensors")
    for name, value in tensors.items():
        if ".experts." in name or name.endswith("block_sparse_moe.gate.weight"):
            value[
                ~keep_from_codes(project(np.abs(value.astype(np.float32)), TWO_FOUR), TWO_FOUR)
            ] = 0
    source = write_model(mixtral, tmp_path / "source", tensors)
    (tmp_path / "out").mkdir()
    found = import_checkpoint(source, tmp_path / "out")
    assert all(".experts." in layer for layer in found.found.codes)
    assert found.notes == ("the mask lists experts, which cpu alone runs sparse",)
    assert "model.layers.0.self_attn.q_proj" in found.dense
    router = found.dense["model.layers.0.block_sparse_moe.gate"]
    assert router.reason == "it routes tokens to experts"
    request = BuildRequest(found.model, "m", {"general": found.mask}, tmp_path / "cpu")
    assert run_builder("cpu", request).layout is not None
    assert run_builder("reference", replace(request, out=tmp_path / "reference")).masks
    for target in ("vllm", "tensorrt-llm"):
        request = BuildRequest(found.model, "m", {"general": found.mask}, tmp_path / target)
        with pytest.raises((MaskError, EngineDirectoryError)):
            run_builder(target, request)
        assert not (tmp_path / target).exists()
