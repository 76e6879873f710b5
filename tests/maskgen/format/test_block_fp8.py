"""FP8 weights with a scale per block: what transformers makes of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize
from typer.testing import CliRunner

from maskgen.format.block_fp8 import read_block_fp8, write_plain_directory
from maskgen.format.mask_file import read_mask
from maskgen.format.model_directory import ModelDirectoryError
from maskgen.models import resolve_model
from tests.engines.conftest import LINEARS
from tests.engines.oracle import Oracle
from tests.tiny_model import make_tiny_llama
from twofour.cli import app

BLOCK = [32, 64]
QUANTIZATION = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": BLOCK,
}
PROJECTION = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOFOUR_CACHE", str(tmp_path / "cache"))


def quantiser(**config: Any) -> Any:
    """What transformers' operations ask of its quantiser, which wants a GPU."""
    given = FineGrainedFP8Config(weight_block_size=BLOCK, **config)
    return SimpleNamespace(quantization_config=given)


def fp8_model(
    folder: Path, *, pruned: bool = False, shards: int = 1, dtype: str = "dtype", **config: Any
) -> Path:
    """A tiny Qwen3 whose linear layers transformers has quantised."""
    model = make_tiny_llama(folder, architecture="qwen3")
    operation = Fp8Quantize(quantiser(**config))
    tensors: dict[str, torch.Tensor] = {}
    for name, values in load_file(model / "model.safetensors").items():
        if not name.removesuffix(".weight").endswith(LINEARS):
            tensors[name] = values
            continue
        if pruned:
            values.view(-1, 4)[:, 1:3] = 0
        tensors |= operation.convert({name: values})
    write(model, tensors, shards)
    settings = json.loads((model / "config.json").read_text())
    settings[dtype] = settings.pop("dtype")
    settings["quantization_config"] = QUANTIZATION
    (model / "config.json").write_text(json.dumps(settings))
    return model


def write(model: Path, tensors: dict[str, torch.Tensor], shards: int = 1) -> None:
    if shards == 1:
        save_file(tensors, model / "model.safetensors", {"format": "pt"})
        return
    (model / "model.safetensors").unlink()
    where = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(tensors)}
    for file in set(where.values()):
        own = {name: values for name, values in tensors.items() if where[name] == file}
        save_file(own, model / file, {"format": "pt"})
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )


@pytest.mark.parametrize("config", [{}, {"scale_fmt": "ue8m0"}])
def test_values_are_those_of_transformers(config: dict[str, Any], tmp_path: Path) -> None:
    model = fp8_model(tmp_path / "model", **config)
    plain = resolve_model(str(model))
    assert plain.is_relative_to(tmp_path / "cache")
    mine = load_file(plain / "model.safetensors")
    stored = load_file(model / "model.safetensors")
    assert stored[PROJECTION].dtype == torch.float8_e4m3fn
    dequantise = Fp8Dequantize(quantiser())._dequantize_one
    for name, values in mine.items():
        scale = stored.get(f"{name}_scale_inv")
        theirs = stored[name]
        if scale is not None:
            theirs = dequantise(theirs, scale, torch.bfloat16)
        assert values.dtype == torch.bfloat16
        assert torch.equal(values, theirs), name
    assert len(mine) == sum(not name.endswith("_scale_inv") for name in stored)


@pytest.mark.parametrize(("shards", "dtype"), [(1, "dtype"), (3, "torch_dtype")])
def test_a_model_is_the_one_that_transformers_loads(
    shards: int, dtype: str, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate", reason="transformers reads FP8 with it")
    model = fp8_model(tmp_path / "model", shards=shards, dtype=dtype)
    tokens = list(range(3, 40))
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).float()
    with torch.no_grad():
        theirs = loaded(torch.tensor([tokens])).logits[0].log_softmax(-1)
    mine = Oracle(resolve_model(str(model))).log_probs(tokens)
    np.testing.assert_allclose(mine, theirs.numpy(), atol=1e-3)


def test_the_last_blocks_may_be_smaller(tmp_path: Path) -> None:
    model = fp8_model(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    rows, cols = tensors[PROJECTION].shape
    scale = torch.arange(1, 3 * 2 + 1, dtype=torch.bfloat16).reshape(3, 2) / 8
    tensors[f"{PROJECTION}_scale_inv"] = scale
    write(model, {name: values for name, values in tensors.items() if PROJECTION in name})
    change(model, weight_block_size=[50, 40])
    write_plain_directory(model, tmp_path / "plain")
    found = load_file(tmp_path / "plain" / "model.safetensors")[PROJECTION].float()
    expected = torch.empty(rows, cols)
    for row in range(rows):
        for col in range(cols):
            expected[row, col] = tensors[PROJECTION][row, col].float() * scale[row // 50, col // 40]
    assert torch.equal(found, expected.to(torch.bfloat16).float())


def change(model: Path, **fields: Any) -> None:
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] |= fields
    (model / "config.json").write_text(json.dumps(config))


def test_commands_take_such_a_directory(tmp_path: Path) -> None:
    model = fp8_model(tmp_path / "model", pruned=True)
    info = CliRunner().invoke(app, ["info", str(model)], catch_exceptions=False).output
    assert "14 F8_E4M3" in info
    assert info.count("tested") >= 2
    run = CliRunner().invoke(app, ["import", str(model), "--out", str(tmp_path / "out")])
    assert run.exit_code == 0, run.exception
    mask = read_mask(tmp_path / "out" / "mask.safetensors")
    assert len(mask.codes) == 14
    assert "quantization_config" not in json.loads((tmp_path / "out/model/config.json").read_text())
    with safe_open(tmp_path / "out/model/model.safetensors", "numpy") as file:
        values = file.get_tensor(PROJECTION)
    assert values.dtype == ml_dtypes.bfloat16
    assert (values.reshape(-1, 4)[:, 1:3] == 0).all()


def test_a_changed_directory_is_made_anew(tmp_path: Path) -> None:
    model = fp8_model(tmp_path / "model")
    first = resolve_model(str(model))
    assert resolve_model(str(model)) == first
    tensors = load_file(model / "model.safetensors")
    tensors[f"{PROJECTION}_scale_inv"] *= 2
    write(model, tensors)
    second = load_file(resolve_model(str(model)) / "model.safetensors")
    before = load_file(first / "model.safetensors")
    assert torch.equal(second[PROJECTION], before[PROJECTION] * 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight_block_size": None}, "weight_block_size is None; .* such as"),
        ({"weight_block_size": [128]}, r"weight_block_size is \[128\]"),
        ({"weight_block_size": [128, 0]}, r"weight_block_size is \[128, 0\]"),
        ({"weight_block_size": [True, 128]}, "weight_block_size is"),
        ({"fmt": "e5m2"}, "fmt is 'e5m2'; only 'e4m3'"),
        ({"activation_scheme": "static"}, "activation_scheme is 'static'; only 'dynamic'"),
        ({"weight_block_size": [64, 64]}, r"_scale_inv is F32 .* needs \[1, 2\] in F32"),
    ],
)
def test_other_kinds_of_fp8_are_refused(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = fp8_model(tmp_path / "model")
    change(model, **fields)
    with pytest.raises(ModelDirectoryError, match=message):
        resolve_model(str(model))
    assert not (tmp_path / "cache" / "models").exists()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{PROJECTION}_scale_inv": None}, r"up_proj\.weight is F8_E4M3, without .*_scale_inv"),
        ({PROJECTION: None}, r"up_proj\.weight_scale_inv without"),
        ({f"{PROJECTION}_scale_inv": torch.ones(1)}, r"is F32 \[1\]; a weight of"),
        ({f"{PROJECTION}_scale_inv": torch.ones(4, 1, dtype=torch.int8)}, "is I8"),
        ({PROJECTION: torch.ones(128, 64)}, "is F32 .* and has scales"),
        ({"extra": torch.ones(4, dtype=torch.float8_e5m2)}, "extra is F8_E5M2"),
        ({f"{PROJECTION}_scale_inv": torch.full((4, 1), torch.inf)}, "rows 0 to 31 that is no num"),
    ],
)
def test_damaged_weights_are_refused(
    tensors: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    model = fp8_model(tmp_path / "model")
    found = load_file(model / "model.safetensors") | tensors
    write(model, {name: values for name, values in found.items() if values is not None})
    with pytest.raises(ModelDirectoryError, match=message):
        resolve_model(str(model))
    assert not (tmp_path / "cache" / "models").exists()


def test_an_unknown_type_is_refused(tmp_path: Path) -> None:
    model = fp8_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"dtype": "float64"}))
    with pytest.raises(ModelDirectoryError, match="dtype is 'float64', expected one of bfloat16"):
        read_block_fp8(model)
