"""Removal is exact: held to the whole model with the same units multiplied by zero."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engines.cpu.build import build
from engines.directory.build import BuildRequest
from engines.offline.llm import LLM
from engines.sampling import SamplingParams
from maskgen.format.digests import base_digest
from maskgen.format.mask_file import write_mask
from maskgen.format.model_directory import read_model_config
from maskgen.prune import PruneSettings, prune
from maskgen.structure.file import Structure, read_structure
from maskgen.structure.removal import (
    BESIDE,
    apply_structure,
    channels_of,
    unit_groups,
    with_result,
)
from maskgen.structure.width import LayerShape, StructureError
from maskgen.torch_model import apply_to_module, load_model
from maskgen.transform.architectures import model_groups
from maskgen.transform.groups import TransformError
from tests.maskgen.structure.random_structures import random_structure
from tests.maskgen.transform.reference import logits
from tests.maskgen.transform.shapes import SHAPES
from tests.tiny_model import make_tiny_llama

IDS = torch.tensor([5, 17, 250, 9, 9, 101, 33, 2, 64, 77, 120, 4])


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    return make_tiny_llama(directory, **SHAPES[request.param])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("llama"))


def gated(model: Path, structure: Structure, out: Path) -> Path:
    """The whole model with removed units multiplied by 0, and kept ones by their scale."""
    out.mkdir()
    config = read_model_config(model)
    (out / "config.json").write_text(json.dumps({**config, "dtype": "float64"}))
    tensors = {n: t.double() for n, t in load_file(model / "model.safetensors").items()}
    for module, (first, second) in structure.low_rank.items():
        tensors[f"{module}.weight"] += torch.from_numpy(second.astype(float) @ first.astype(float))
    for name, group in unit_groups(model_groups(model).groups).items():
        kept = structure.kept[name]
        scales = structure.scales.get(name, np.ones(len(kept), np.float32))
        for place in group.readers:
            gate = torch.zeros(group.length(place), dtype=torch.float64)
            by_channel = torch.from_numpy(np.repeat(scales.astype(float), place.unit))
            gate[torch.from_numpy(channels_of(kept, place))] = by_channel
            tensors[place.tensor] = tensors[place.tensor] * gate
    save_file(tensors, out / "model.safetensors")
    return out


def test_what_is_left_answers_as_the_gated_model(model: Path, tmp_path: Path) -> None:
    heads = LayerShape.of(read_model_config(model)).full.key_value_heads
    structure = random_structure(model, 40, max(1, heads - 1))
    digest = apply_structure(model, structure, tmp_path / "small")
    assert digest == base_digest(tmp_path / "small")
    expected = logits(gated(model, structure, tmp_path / "gated"), IDS)
    found = logits(tmp_path / "small", IDS)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_scales_and_differences_are_folded_into_the_weights(llama: Path, tmp_path: Path) -> None:
    structure = random_structure(llama, 64, 1, scale=True, rank=2)
    apply_structure(llama, structure, tmp_path / "small")
    expected = logits(gated(llama, structure, tmp_path / "gated"), IDS)
    found = logits(tmp_path / "small", IDS)
    # bf16 keeps 8 bits of every changed weight.
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    plain = logits(gated(llama, replace(structure, scales={}), tmp_path / "plain"), IDS)
    assert (found - plain).abs().max() > 0.2 * expected.abs().max()


def test_stock_loaders_take_it_without_code_of_ours(model: Path, tmp_path: Path) -> None:
    shape = LayerShape.of(read_model_config(model))
    structure = random_structure(model, 48, 1)
    apply_structure(model, structure, tmp_path / "small")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small", dtype=torch.float32)
    linears = [
        module
        for name, module in loaded.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name
    ]
    count = sum(linear.weight.numel() for linear in linears)
    assert count == shape.layers * shape.weights(structure.width)
    config = read_model_config(tmp_path / "small")
    assert config["head_dim"] == shape.head
    assert config["num_attention_heads"] == shape.repeat
    with torch.inference_mode():
        stock = loaded(IDS[None]).logits[0]
    torch.testing.assert_close(
        stock.double(), logits(tmp_path / "small", IDS), rtol=1e-3, atol=1e-3
    )


def test_our_engine_runs_it_and_masks_cover_it(llama: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    apply_structure(llama, random_structure(llama, 64, 1), small)
    mask = prune(small, None, PruneSettings("magnitude")).mask
    write_mask(tmp_path / "mask.safetensors", mask)
    build(BuildRequest(small, "small", {"half": tmp_path / "mask.safetensors"}, tmp_path / "out"))
    model = load_model(small, "fp32")
    apply_to_module(model, mask)
    greedy = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    with LLM(tmp_path / "out") as engine:
        (answer,) = engine.generate([IDS.tolist()], greedy)
    made = list(answer.outputs[0].token_ids)
    found = model(torch.tensor([IDS.tolist() + made])).logits[0, len(IDS) - 1 : -1]
    # The engine rounds activations to bf16: two tokens that are almost as likely may change places.
    best = found.max(dim=-1).values
    chosen = found.gather(1, torch.tensor(made)[:, None])[:, 0]
    assert len(made) == 8
    assert (best - chosen).max() < 0.1 * found.std()


def test_the_structure_lies_beside_what_it_made(llama: Path, tmp_path: Path) -> None:
    structure = with_result(llama, random_structure(llama, 64, 1))
    digest = apply_structure(llama, structure, tmp_path / "small")
    beside = read_structure(tmp_path / "small" / BESIDE)
    assert beside.record.result_digest == structure.record.result_digest == digest
    assert (tmp_path / "small" / "tokenizer.json").is_file()


def test_structures_of_others_are_refused(llama: Path, tmp_path: Path) -> None:
    other = make_tiny_llama(tmp_path / "other", seed=1)
    structure = random_structure(llama, 64, 1)
    with pytest.raises(StructureError, match="belongs to the base model"):
        apply_structure(other, structure, tmp_path / "small")
    changed = replace(structure, record=replace(structure.record, result_digest="0" * 64))
    with pytest.raises(StructureError, match="nothing was written"):
        apply_structure(llama, changed, tmp_path / "small")
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("group", "kept", "message"),
    [
        ("layers.0.mlp", [3, 3], "not a rising list of units below 128"),
        ("layers.0.mlp", [1, 128], "not a rising list"),
        ("layers.0.mlp", [], "not a rising list"),
        ("layers.9.mlp", [1], "differ in layers.9.mlp"),
    ],
)
def test_lists_that_do_not_fit_are_refused(
    llama: Path, tmp_path: Path, group: str, kept: list[int], message: str
) -> None:
    structure = random_structure(llama, 64, 1)
    broken = {**structure.kept, group: np.array(kept, dtype=np.uint16)}
    with pytest.raises(StructureError, match=message):
        apply_structure(llama, replace(structure, kept=broken), tmp_path / "small")


def test_differences_that_do_not_fit_are_refused(llama: Path, tmp_path: Path) -> None:
    factors = np.zeros((2, 64), np.float32), np.zeros((3, 2), np.float32)
    structure = replace(
        random_structure(llama, 64, 1), low_rank={"model.layers.0.mlp.up_proj": factors}
    )
    with pytest.raises(StructureError, match=r"does not fit model\.layers\.0\.mlp\.up_proj"):
        apply_structure(llama, structure, tmp_path / "small")


def test_unknown_architectures_are_refused(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model")
    structure = random_structure(model, 64, 1)
    config = read_model_config(model)
    (model / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    with pytest.raises(TransformError, match="model type 'mamba' is not in the table"):
        apply_structure(model, structure, tmp_path / "small")
