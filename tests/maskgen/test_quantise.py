"""Rounding with error feedback: GPTQ, and the values file that a model's layers make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

from engines.cpu.build import build
from engines.cpu.engine import CpuEngine
from engines.directory.build import BuildRequest
from engines.directory.manifest import read_manifest
from engines.errors import EngineDirectoryError, MaskError
from engines.quantisation.grid import Grid as EngineGrid
from engines.quantisation.grid import round_to_nearest
from engines.quantisation.options import ValueOptions
from engines.registry import run_builder
from maskgen.format.values_file import ValuesFileError, read_values_header
from maskgen.methods.sparsegpt import Hessian, inverse_factor
from maskgen.recovery.gptq import gptq
from maskgen.recovery.quantiser import WeightGrid, quantise
from tests.engines.conftest import random_mask
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama
from twofour.cli import app

GRIDS = [WeightGrid("int8", 32), WeightGrid("int4", 32), WeightGrid("int4", 64, minima=True)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_errors_in_the_outputs_are_smaller_than_by_rounding_to_nearest(
    grid: WeightGrid, masked: bool
) -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 144, generator=random)
    inputs = torch.randn(600, 144, generator=random) @ torch.randn(144, 144, generator=random)
    keep = torch.rand(40, 144, generator=random) < 0.5 if masked else torch.ones(40, 144).bool()
    statistic = Hessian(144, torch.device("cpu"))
    statistic.add(inputs)
    factor = inverse_factor(statistic.sum, statistic.tokens)
    found = gptq(weight, keep if masked else None, factor, grid)
    nearest = quantise(weight, keep, grid)
    assert masked or torch.equal(found.scales, nearest.scales)
    low, high = (-127, 127) if grid.values == "int8" else (0, 15)
    assert found.numbers.min() >= low
    assert found.numbers.max() <= high
    assert torch.equal(found.numbers, found.numbers.round())

    def loss(numbers: Any) -> float:
        away = numbers.weight(144).masked_fill(~keep, 0) - weight
        return float((inputs @ away.T).square().mean())

    assert loss(found) < (0.9 if masked else 0.7) * loss(nearest)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("quantise") / "model")


def quantised(model: Path, out: Path, *more: str) -> Path:
    text = out.parent / "text.txt"
    text.write_text(SAMPLE_TEXT * 3)
    words = ["quantise", "--model", str(model), "--data", str(text), "--out", str(out)]
    done = CliRunner().invoke(app, [*words, "--windows", "4", "--length", "64", *more])
    assert done.exit_code == 0, (done.output, done.exception)
    return out


@pytest.mark.parametrize("kind", ["llama", "phi3"])
async def test_values_of_the_dense_matrices_serve_every_mask(kind: str, tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model", architecture=kind)
    file = quantised(model, tmp_path / "values.safetensors", "--block", "64")
    masks = {
        name: random_mask(model, tmp_path / f"{name}.mask", seed=seed)
        for seed, name in enumerate(("one", "two"))
    }
    for name, mask in masks.items():
        build(BuildRequest(model, "tiny", {name: mask}, tmp_path / name, values_file=file))
    record = read_manifest(tmp_path / "one").quantisation
    assert record is not None
    assert (record.kind, record.quantiser, record.block) == ("swappable", "gptq", 64)
    assert record.calibration_digest == read_values_header(file).calibration_digest
    engine = CpuEngine(tmp_path / "one", kv_bytes=1 << 20, mask_storage="patch")
    await engine.load_mask("two", masks["two"])
    await engine.switch_base("two")
    other = CpuEngine(tmp_path / "two", kv_bytes=1 << 20)
    for mine, theirs in zip(engine._model.base, other._model.base, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a.data, b.data)
    await engine.close()
    await other.close()
    # They are other values than the nearest ones, of the same grid.
    name = "model.layers.0.mlp.down_proj"
    weight = load_file(model / "model.safetensors")[f"{name}.weight"].astype(np.float32)
    nearest = round_to_nearest(weight, EngineGrid("int4", 64, minima=True))
    stored = load_file(file)
    np.testing.assert_array_equal(stored[f"{name}.scales"], nearest.scales)
    assert (stored[f"{name}.values"] != nearest.values).any()


async def test_values_for_one_mask_refuse_all_others(model: Path, tmp_path: Path) -> None:
    mask, other = (random_mask(model, tmp_path / f"{i}.mask", seed=i) for i in range(2))
    file = quantised(model, tmp_path / "values", "--mask", str(mask), "--values", "int8")
    manifest = build(BuildRequest(model, "tiny", {"m": mask}, tmp_path / "m", values_file=file))
    assert manifest.sealed
    assert manifest.quantisation is not None
    assert manifest.quantisation.kind == "single"
    assert not (tmp_path / "m" / "complement.safetensors").exists()
    engine = CpuEngine(tmp_path / "m", kv_bytes=1 << 20)
    with pytest.raises(MaskError, match="sealed"):
        await engine.load_mask("other", other)
    await engine.close()
    for masks in ({"o": other}, {}):
        request = BuildRequest(model, "tiny", masks, tmp_path / "o", values_file=file)
        with pytest.raises(MaskError, match="for what one mask keeps"):
            build(request)


def test_values_that_do_not_belong_are_refused(model: Path, tmp_path: Path) -> None:
    file = quantised(model, tmp_path / "values")
    other = make_tiny_llama(tmp_path / "other", seed=1)
    with pytest.raises(EngineDirectoryError, match="made for the model with base digest"):
        build(BuildRequest(other, "tiny", {}, tmp_path / "out", values_file=file))
    request = BuildRequest(model, "tiny", {}, tmp_path / "out", values_file=file)
    with pytest.raises(ValueError, match="target reference has bf16 weights only"):
        run_builder("reference", request)
    told = ValueOptions(values="int4")
    with pytest.raises(EngineDirectoryError, match="leave the options out"):
        build(BuildRequest(model, "tiny", {}, tmp_path / "out", values=told, values_file=file))
    broken = tmp_path / "broken"
    broken.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(EngineDirectoryError, match="no values file"):
        build(BuildRequest(model, "tiny", {}, tmp_path / "out", values_file=broken))
    with pytest.raises(ValuesFileError, match="does not say so"):
        read_values_header(model / "model.safetensors")
    assert not (tmp_path / "out").exists()
