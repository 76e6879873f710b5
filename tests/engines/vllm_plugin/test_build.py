"""Building vLLM engine directories, and cutting them anew for another mask. Needs no vLLM."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.directory.build import BuildRequest
from engines.directory.checkpoint import Checkpoint
from engines.directory.manifest import read_manifest
from engines.errors import EngineDirectoryError, MaskError, UnknownMaskError
from engines.native.layout import BF16
from engines.vllm_plugin.build import build
from engines.vllm_plugin.catalog import MaskCatalog
from engines.vllm_plugin.format import dense_values, parse_spec, unpack_nibbles
from engines.vllm_plugin.weights import MaskedWeights
from maskgen.format.mask_file import read_mask
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import keep_from_codes
from tests.engines.conftest import mask_of_experts, random_mask
from tests.tiny_model import make_tiny_llama

MaskOf = Callable[..., Path]


@pytest.fixture(scope="module")
def built(tiny_model: Path, mask_of: MaskOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "engine"
    masks = {"general": mask_of(tiny_model), "french": mask_of(tiny_model, seed=1)}
    build(BuildRequest(model=tiny_model, model_name="tiny", masks=masks, out=out))
    return out


def test_the_checkpoint_holds_the_masked_model(built: Path, tiny_model: Path) -> None:
    base, written = Checkpoint(tiny_model), Checkpoint(built, encoded=True)
    mask = read_mask(built / "masks" / "general.safetensors")
    spec = parse_spec(written.config["quantization_config"])
    assert set(spec.sparse_layers) == set(mask.codes)
    assert spec.mask_digest == mask.digest == read_manifest(built).mask("general").digest
    for name in base:
        layer = name.removesuffix(".weight")
        if layer not in mask.codes:
            assert np.array_equal(written.tensor(name), base.tensor(name))
            continue
        assert name not in written
        codes = unpack_nibbles(written.raw(f"{layer}.codes"), base.spec(name).shape[1] // 4)
        dense = dense_values(written.tensor(f"{layer}.kept"), None, codes)
        keep = keep_from_codes(mask.codes[layer], TWO_FOUR)
        assert np.array_equal(dense, np.where(keep, base.tensor(name), BF16.type(0)))


def test_vllm_finds_only_the_model_among_the_files(built: Path) -> None:
    index = json.loads((built / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {"model.safetensors"}
    assert set(index["weight_map"]) == set(Checkpoint(built, encoded=True))
    assert (built / "complement.safetensors").is_file()
    assert json.loads((built / "config.json").read_text())["dtype"] == "bfloat16"


def test_another_mask_is_cut_from_kept_and_dropped_values(built: Path, tiny_model: Path) -> None:
    base, weights = Checkpoint(tiny_model), MaskedWeights(built, read_manifest(built).identity)
    record = read_manifest(built).mask("french")
    codes = weights.read(built / record.file, record.digest)
    assert weights.differ(codes, codes)
    for layer, values in weights.values(codes, codes).items():
        kept = values["kept"].view(torch.uint16).numpy().view(BF16)
        dense = dense_values(kept, None, codes[layer])
        keep = keep_from_codes(codes[layer], TWO_FOUR)
        assert np.array_equal(dense, np.where(keep, base.tensor(f"{layer}.weight"), BF16.type(0)))
    weights.active = codes
    assert not weights.differ(codes, codes)


def test_worker_refuses_foreign_masks(built: Path, tmp_path: Path, mask_of: MaskOf) -> None:
    weights = MaskedWeights(built, read_manifest(built).identity)
    record = read_manifest(built).mask("french")
    with pytest.raises(MaskError, match="expected"):
        weights.read(built / record.file, "0" * 64)
    with pytest.raises(MaskError, match=r"none\.safetensors"):
        weights.read(tmp_path / "none.safetensors", record.digest)
    other = make_tiny_llama(tmp_path / "other", seed=5)
    foreign = random_mask(other, tmp_path / "foreign.safetensors")
    with pytest.raises(MaskError, match="base digest"):
        weights.read(foreign, read_mask(foreign).digest)


def test_a_worker_never_mixes_two_directories(
    built: Path, tiny_model: Path, mask_of: MaskOf, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(built, tmp_path / "engine"))
    manifest = read_manifest(directory)
    weights = MaskedWeights(directory, manifest.identity)
    record = manifest.mask("french")
    codes = weights.read(directory / record.file, record.digest)
    names = list(codes)
    before = weights.values(names, codes)
    masks = {"general": mask_of(tiny_model, seed=2), "french": mask_of(tiny_model, seed=1)}
    build(BuildRequest(tiny_model, "tiny", masks, directory, overwrite=True))
    with pytest.raises(EngineDirectoryError, match="no longer, what it was"):
        weights.values(names, codes)
    with pytest.raises(MaskError, match="was rebuilt since the engine opened it"):
        MaskedWeights(directory, manifest.identity)
    # Built again as it was, it is the same directory.
    masks["general"] = mask_of(tiny_model)
    build(BuildRequest(tiny_model, "tiny", masks, directory, overwrite=True))
    after = weights.values(names, codes)
    for name in names:
        for part, tensor in before[name].items():
            assert torch.equal(tensor, after[name][part])


def test_sealed_directories(tiny_model: Path, mask_of: MaskOf, tmp_path: Path) -> None:
    masks = {"general": mask_of(tiny_model)}
    request = BuildRequest(
        model=tiny_model, model_name="tiny", masks=masks, out=tmp_path / "sealed", sealed=True
    )
    manifest = build(request)
    assert manifest.sealed
    assert not (tmp_path / "sealed" / "complement.safetensors").exists()
    weights = MaskedWeights(tmp_path / "sealed", manifest.identity)
    other = mask_of(tiny_model, seed=1)
    with pytest.raises(MaskError, match="sealed"):
        weights.read(other, read_mask(other).digest)
    catalog = MaskCatalog(tmp_path / "sealed", manifest)
    with pytest.raises(MaskError, match="sealed"):
        catalog.load("french", other)
    two = BuildRequest(
        model=tiny_model,
        model_name="tiny",
        masks=masks | {"french": other},
        out=tmp_path / "two",
        sealed=True,
    )
    with pytest.raises(EngineDirectoryError, match="sealed"):
        build(two)
    assert not (tmp_path / "two").exists()


def test_dense_and_partly_dense_engines(tiny_model: Path, mask_of: MaskOf, tmp_path: Path) -> None:
    request = BuildRequest(model=tiny_model, model_name="tiny", masks={}, out=tmp_path / "dense")
    manifest = build(request)
    assert manifest.default_mask is None
    assert (
        parse_spec(Checkpoint(tmp_path / "dense", encoded=True).config["quantization_config"]).mask
        is None
    )
    catalog = MaskCatalog(tmp_path / "dense", manifest)
    assert catalog.resolve(None) is None
    with pytest.raises(MaskError, match="dense"):
        catalog.load("french", mask_of(tiny_model))
    partly = {"general": mask_of(tiny_model, leave_out="k_proj")}
    build(BuildRequest(model=tiny_model, model_name="t", masks=partly, out=tmp_path / "partly"))
    assert "model.layers.0.self_attn.k_proj.weight" in Checkpoint(tmp_path / "partly", encoded=True)


def test_models_that_do_not_fit_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    narrow = make_tiny_llama(tmp_path / "narrow", intermediate_size=132)
    mask = random_mask(narrow, tmp_path / "narrow.safetensors")
    request = BuildRequest(
        model=narrow, model_name="n", masks={"general": mask}, out=tmp_path / "out"
    )
    with pytest.raises(MaskError, match="multiple of 8"):
        build(request)
    quantised = make_tiny_llama(tmp_path / "quantised")
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (quantised / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineDirectoryError, match="gptq"):
        build(BuildRequest(model=quantised, model_name="q", masks={}, out=tmp_path / "out"))
    deeper = make_tiny_llama(tmp_path / "deeper")
    config = json.loads((deeper / "config.json").read_text()) | {"num_hidden_layers": 3}
    (deeper / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineDirectoryError, match=r"9 are missing, such as model\.layers\.2"):
        build(BuildRequest(model=deeper, model_name="d", masks={}, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_it_says_which_models_were_tested(mixtral: Path, tiny_model: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    request = BuildRequest(tiny_model, "t", {}, tmp_path / "llama", note=notes.append)
    build(request)
    build(replace(request, model=mixtral, out=tmp_path / "mixtral"))
    notes = [note for note in notes if note.startswith("tested through vLLM")]
    tested = [note for note in notes if note.startswith("tested")]
    assert tested[0].startswith("tested through vLLM: llama, mistral, ")
    assert tested[0].endswith("; this model is llama")
    assert "; this model is mixtral, which was not: compare" in tested[1]
    mask = mask_of_experts(mixtral, tmp_path / "experts.safetensors")
    with pytest.raises(MaskError, match="vLLM fuses experts"):
        build(replace(request, model=mixtral, masks={"m": mask}, out=tmp_path / "out"))


def test_catalog(built: Path, tiny_model: Path, mask_of: MaskOf, tmp_path: Path) -> None:
    catalog = MaskCatalog(built, read_manifest(built))
    assert len(catalog.shapes) == 14
    assert catalog.shapes["model.layers.0.mlp.down_proj"] == (64, 128)
    assert catalog.resolve(None) == "general"
    late = mask_of(tiny_model, seed=2)
    catalog.load("late", late)
    assert catalog.digest("late") == read_mask(late).digest
    infos = {info.name: info for info in catalog.infos({"late": 2}, "general")}
    assert infos["late"].pinned == 2
    assert infos["late"].changed_share > 0.5
    assert infos["general"].storage == "base"
    for name, path, message in [
        ("late", late, "loaded already"),
        ("no name", late, "letters"),
        ("short", mask_of(tiny_model, leave_out="k_proj"), "other layers"),
        ("none", tmp_path / "none", "none"),
    ]:
        with pytest.raises(MaskError, match=message):
            catalog.load(name, path)
    catalog.unload("late")
    with pytest.raises(UnknownMaskError):
        catalog.resolve("late")
    with pytest.raises(UnknownMaskError):
        catalog.unload("late")
    with pytest.raises(MaskError, match="default"):
        catalog.unload("general")
