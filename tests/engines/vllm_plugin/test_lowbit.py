"""Checkpoints of int8 and int4 values: what they hold, and how they are packed. Needs no vLLM."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from engines.cpu import build as cpu_build
from engines.directory.build import BuildRequest
from engines.directory.checkpoint import Checkpoint
from engines.directory.manifest import QuantisationRecord, read_manifest
from engines.directory.tensor_file import TensorFile
from engines.errors import EngineDirectoryError, MaskError
from engines.native import lowbit
from engines.native.layout import Layout
from engines.native.torch_ops import linear
from engines.quantisation.grid import Grid, round_to_nearest
from engines.quantisation.options import HEAD_BLOCK, ValueOptions
from engines.registry import run_builder
from engines.vllm_plugin.build import build
from engines.vllm_plugin.catalog import MaskCatalog
from engines.vllm_plugin.cpu import CpuBackend, packed_rows
from engines.vllm_plugin.format import QuantizationSpec, parse_spec
from engines.vllm_plugin.lowbit_format import linear_form, table_form
from engines.vllm_plugin.packed_table import packed_table_rows
from engines.vllm_plugin.stored_form import QuantisedForm, stored_form
from engines.vllm_plugin.weights import MaskedWeights
from maskgen.format.mask_file import read_mask
from tests.engines.conftest import FORMS, random_mask
from tests.tiny_model import make_tiny_llama

MaskOf = Callable[..., Path]
LOWBIT = {name: form for name, form in FORMS.items() if name != "bf16"}
ALL_INT8 = ValueOptions(values="int8")


def request_of(
    model: Path, mask_of: MaskOf, out: Path, form: str = "int8", **options: bool
) -> BuildRequest:
    values, pattern = LOWBIT[form]
    masks = {
        name: mask_of(model, seed=seed, pattern=pattern, leave_out="k_proj")
        for seed, name in enumerate(("general", "french"))
    }
    return BuildRequest(model, "tiny", masks, out, values=values, **options)


@pytest.fixture(scope="module", params=LOWBIT)
def built(
    request: pytest.FixtureRequest,
    tiny_model: Path,
    mask_of: MaskOf,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    out = tmp_path_factory.mktemp(request.param.replace(":", "-")) / "engine"
    build(request_of(tiny_model, mask_of, out, request.param))
    return out


def spec_of(directory: Path) -> QuantizationSpec:
    return parse_spec(json.loads((directory / "config.json").read_text())["quantization_config"])


def options_of(record: QuantisationRecord) -> ValueOptions:
    told = record.model_dump(include={"values", "block", "head"})
    return ValueOptions.model_validate({**told, "minima": record.minima or None})


def stored(directory: Path, layer: str) -> dict[str, np.ndarray]:
    """A layer's tensors by their last name."""
    file = TensorFile(directory / "model.safetensors")
    names = [name for name in file if name.rpartition(".")[0] == layer]
    return {name.rpartition(".")[2]: file.tensor(name) for name in names}


def packed_by_cpu_target(
    model: Path, masks: dict[str, Path], out: Path, options: ValueOptions
) -> TensorFile:
    cpu_build.build(BuildRequest(model, "tiny", masks, out, values=options))
    return TensorFile(out / "weights.safetensors")


def test_every_layer_is_packed_as_by_the_cpu_target(
    built: Path, tiny_model: Path, tmp_path: Path
) -> None:
    manifest, spec = read_manifest(built), spec_of(built)
    assert manifest.required_features == ("quantised-values",)
    assert manifest.layout is not None
    assert manifest.layout.values == spec.values
    assert spec.mask_digest == manifest.mask("general").digest
    record = manifest.quantisation
    assert record is not None
    options = options_of(record)
    masks = {"general": built / manifest.mask("general").file}
    theirs = packed_by_cpu_target(tiny_model, masks, tmp_path / "cpu", options)
    form, seen = stored_form(spec), 0
    for name in theirs:
        layer, _, layout = name.rpartition(".")
        if not layout.endswith(("int8", "int4")) or layer == "lm_head":
            continue
        parts = stored(built, layer)
        assert parts.keys() == set(form.parts(sparse="bitmap" in parts))
        assert ("bitmap" in parts) == (layer in spec.sparse_layers)
        k = read_shape(tiny_model, layer)[1]
        tensors = {part: torch.from_numpy(array) for part, array in parts.items()}
        run = form.pack(CpuBackend(), tensors, k)
        assert Layout(run.layout).name.lower() == layout
        assert np.array_equal(run.tensors["packed"].numpy(), theirs.tensor(name))
        seen += 1
    assert seen == 14


def read_shape(model: Path, layer: str) -> tuple[int, ...]:
    return Checkpoint(model).spec(f"{layer}.weight").shape


def test_another_mask_is_cut_from_kept_and_dropped_values(
    built: Path, tiny_model: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(built)
    weights = MaskedWeights(built, manifest.identity)
    record = manifest.mask("french")
    kept = weights.read(built / record.file, record.digest)
    assert weights.differ(kept, kept)
    french = {"french": built / record.file}
    assert manifest.quantisation is not None
    other, values = tmp_path / "french", options_of(manifest.quantisation)
    build(BuildRequest(tiny_model, "tiny", french, other, values=values))
    for layer, parts in weights.values(kept, kept).items():
        expected = stored(other, layer)
        assert parts.keys() == expected.keys()
        for part, tensor in parts.items():
            assert np.array_equal(tensor.numpy(), expected[part]), (layer, part)
    weights.active = kept
    assert not weights.differ(kept, kept)


def test_masks_are_loaded_and_refused(built: Path, tiny_model: Path, mask_of: MaskOf) -> None:
    catalog = MaskCatalog(built, read_manifest(built))
    assert catalog.shapes["model.layers.0.mlp.down_proj"] == (64, 128)
    spec = spec_of(built)
    assert catalog.layout.values == spec.values
    late = mask_of(tiny_model, seed=2, pattern=spec.pattern, leave_out="k_proj")
    catalog.load("late", late)
    assert catalog.digest("late") == read_mask(late).digest
    with pytest.raises(MaskError, match="1:4"):
        catalog.load("other", mask_of(tiny_model, seed=2, pattern="1:4", leave_out="k_proj"))


def test_sealed_directories(tiny_model: Path, mask_of: MaskOf, tmp_path: Path) -> None:
    two = request_of(tiny_model, mask_of, tmp_path / "sealed", sealed=True)
    manifest = build(replace(two, masks={"general": two.masks["general"]}))
    assert not (tmp_path / "sealed" / "complement.safetensors").exists()
    other = mask_of(tiny_model, seed=1, leave_out="k_proj")
    weights = MaskedWeights(tmp_path / "sealed", manifest.identity)
    with pytest.raises(MaskError, match="sealed"):
        weights.read(other, read_mask(other).digest)


@pytest.mark.parametrize("tied", [True, False])
def test_int8_tables(tied: bool, tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model", tie_word_embeddings=tied)
    build(BuildRequest(model, "tiny", {}, tmp_path / "engine", values=ALL_INT8))
    form = table_form(spec_of(tmp_path / "engine"))
    assert form is not None
    names = ["model.embed_tokens"] if tied else ["model.embed_tokens", "lm_head"]
    assert bool(stored(tmp_path / "engine", "lm_head")) is not tied
    for name in names:
        dense = Checkpoint(model).tensor(f"{name}.weight")
        table = packed_rows(form.pack(stored(tmp_path / "engine", name), dense.shape[1]))
        grid = Grid("int8", HEAD_BLOCK)
        exact = lowbit.dequantise(grid.dense_layout, round_to_nearest(dense, grid))
        rows = torch.tensor([[0, 1, 17], [len(dense) - 1, 15, 16]])
        found = packed_table_rows(table, rows)
        assert np.array_equal(found.numpy(), exact[rows.numpy()])


@pytest.mark.parametrize(("k", "block"), [(60, 32), (200, 128), (576, 64)])
def test_rows_of_a_packed_table(k: int, block: int) -> None:
    grid = Grid("int8", block)
    values = np.random.default_rng(0).standard_normal((35, k)).astype(np.float32)
    weights = round_to_nearest(values, grid)
    table = packed_rows(lowbit.pack(grid.dense_layout, weights))
    found = packed_table_rows(table, torch.arange(35))
    assert np.array_equal(found.numpy(), lowbit.dequantise(grid.dense_layout, weights))
    traced = torch.compile(packed_table_rows, backend="eager", fullgraph=True)
    assert torch.equal(traced(table, torch.arange(35)), found)
    with pytest.raises(ValueError, match="not SPARSE24_INT8"):
        packed_table_rows(packed_rows(packed_sparse(16, 64)), torch.zeros(1, dtype=torch.int64))


def packed_sparse(n: int, k: int) -> lowbit.PackedWeights:
    keep = np.tile([True, True, False, False], (n, k // 4))
    values = round_to_nearest(np.ones((n, k), np.float32), Grid("int8", 32))
    kept = lowbit.QuantisedWeights(values.values, values.scales, 32, kept=lowbit.kept_words(keep))
    return lowbit.pack(Layout.SPARSE24_INT8, kept)


def test_what_is_not_loaded_is_refused(built: Path) -> None:
    spec = spec_of(built)
    form = linear_form(spec)
    assert form is not None
    unloaded = QuantisedForm(form)
    for layer in ("model.layers.0.mlp.up_proj", "model.layers.0.self_attn.k_proj"):
        whole = {part: torch.from_numpy(array) for part, array in stored(built, layer).items()}
        k = 64
        unloaded.pack(CpuBackend(), whole, k)
        for part, tensor in whole.items():
            fill = unloaded.parameter(part, k)
            assert (fill.dtype, fill.width) == (tensor.dtype, tensor.shape[1])
            empty = fill.unloaded(len(tensor))
            assert (empty.dtype, empty.shape) == (tensor.dtype, tensor.shape)
            damaged = {**whole, part: torch.cat([tensor[:-1], empty[-1:]])}
            with pytest.raises(EngineDirectoryError, match="missing in the checkpoint"):
                unloaded.pack(CpuBackend(), damaged, k)


def test_bf16_directories_say_nothing_of_values(
    tiny_model: Path, mask_of: MaskOf, tmp_path: Path
) -> None:
    """A reader of version 1 refuses fields that it does not know."""
    masks = {"general": mask_of(tiny_model)}
    build(BuildRequest(tiny_model, "tiny", masks, tmp_path / "engine"))
    config = json.loads((tmp_path / "engine" / "config.json").read_text())["quantization_config"]
    assert list(config) == [
        "quant_method",
        "format_version",
        "pattern",
        "sparse_layers",
        "dense_kernel",
        "mask",
        "mask_digest",
    ]
    assert config["format_version"] == 1


def test_models_that_do_not_fit_are_refused(
    mixtral: Path, tiny_model: Path, mask_of: MaskOf, tmp_path: Path
) -> None:
    with pytest.raises(EngineDirectoryError, match="this model is mixtral"):
        build(BuildRequest(mixtral, "m", {}, tmp_path / "out", values=ALL_INT8))
    narrow = make_tiny_llama(tmp_path / "narrow", intermediate_size=132)
    with pytest.raises(EngineDirectoryError, match=r"132 inputs; .* multiple of 8"):
        build(BuildRequest(narrow, "n", {}, tmp_path / "out", values=ALL_INT8))
    bf16 = random_mask(tiny_model, tmp_path / "wide.safetensors", pattern="16:32")
    with pytest.raises(MaskError, match="16:32"):
        run_builder("vllm", BuildRequest(tiny_model, "t", {"m": bf16}, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("values", "refused"), [("bf16", False), ("int8", True), ("int4", True)])
def test_cuda_refuses_int8_and_int4(
    values: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    platforms = ModuleType("vllm.platforms")
    platforms.current_platform = SimpleNamespace(  # type: ignore[attr-defined]
        is_cpu=lambda: False, is_cuda=lambda: True, device_name="a GPU"
    )
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    monkeypatch.delitem(sys.modules, "engines.vllm_plugin.device", raising=False)
    from engines.vllm_plugin.device import select_backend

    if refused:
        with pytest.raises(EngineDirectoryError, match=f"{values} values run on the CPU only"):
            select_backend(values)
    else:
        assert type(select_backend(values)).__name__ == "CudaBackend"
    monkeypatch.delitem(sys.modules, "engines.vllm_plugin.device")


def test_products_are_those_of_the_cpu_engine() -> None:
    packed = packed_sparse(37, 96)
    run, x = packed_rows(packed), torch.randn(3, 96)
    bias = torch.linspace(-1, 1, 37)
    found = CpuBackend().multiply(x, run, bias)
    assert torch.equal(
        found, linear(x, torch.from_numpy(packed.data), int(packed.layout), 37, bias, 32, False)
    )
    assert "sparse int8" in CpuBackend().describe("layer", run)
