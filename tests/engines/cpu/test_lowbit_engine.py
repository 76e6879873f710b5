"""Engines of int8 and int4 values: the model that their values stand for, under any mask."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engines.cpu.build import build
from engines.cpu.describe import kernels_of_directory
from engines.cpu.engine import CpuEngine
from engines.cpu.mask_weights import DenseSource, copies_of
from engines.directory.build import BuildRequest
from engines.directory.families import LINEARS
from engines.directory.manifest import read_manifest
from engines.directory.tied_file import TiedFile
from engines.errors import EngineDirectoryError, MaskError
from engines.native.lowbit import dequantise
from engines.quantisation.grid import Grid, round_to_nearest
from engines.quantisation.options import HEAD_BLOCK, ValueOptions
from engines.registry import run_builder
from engines.sampling import SamplingParams
from maskgen.format.mask_file import read_mask
from tests.engines.conftest import FORMS, VALUES, edit_manifest, nearby_mask
from tests.engines.oracle import Oracle, answers, check_greedy, many
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama

GREEDY = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True, logprobs=0)

# Activations are rounded to 8 bits for every block: a coarser model of float32 than bf16 is.
MARGIN = 1.2
TOLERANCE = 1.2
MEAN_TOLERANCE = 0.2

LOWBIT = {name: values for name, values in VALUES.items() if name != "bf16"}
MODELS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied-biases": {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    "odd-sizes": {
        "hidden_size": 60,
        "intermediate_size": 100,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
    },
}


class QuantisedOracle(Oracle):
    """The model in float32, of the weights that an engine's values stand for."""

    def __init__(self, model: Path, mask: Path | None, options: ValueOptions) -> None:
        super().__init__(model)
        linears = Grid(options.values, options.block_inputs, options.has_minima)
        table = Grid("int8", HEAD_BLOCK)
        keep = Oracle(model, mask).model.state_dict()
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                layer = name.removesuffix(".weight")
                grid = linears if layer.endswith(LINEARS) else table
                if weight.ndim < 2 or (grid is table and options.head_values == "bf16"):
                    continue
                found = round_to_nearest(weight.numpy(), grid)
                weight.copy_(torch.from_numpy(dequantise(grid.dense_layout, found)))
                if layer.endswith(LINEARS):
                    weight.mul_(keep[name] != 0)


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "8:16", "16:32", None])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("values", LOWBIT)
async def test_answers_follow_the_model_that_the_values_stand_for(
    values: str, name: str, pattern: str | None, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    if name == "odd-sizes" and pattern not in ("2:4", None):
        pytest.skip("its widths are no multiples of 8")
    model = make_tiny_llama(tmp_path / f"{values}-{name}", initializer_range=0.2, **MODELS[name])
    mask = mask_of(model, leave_out="gate_proj", pattern=pattern) if pattern else None
    masks = {"general": mask} if mask else {}
    build(BuildRequest(model, "tiny", masks, tmp_path / "engine", values=VALUES[values]))
    engine = CpuEngine(tmp_path / "engine", kv_bytes=8 << 20, step_tokens=64)
    text = engine.codec.encode(SAMPLE_TEXT)
    prompts = [text[:1], text[3:10], text[:150]]
    alone = [(await answers(engine, prompt, GREEDY, salt="alone"))[0] for prompt in prompts]
    batched = await many(engine, prompts, GREEDY)
    await engine.close()
    assert [a.token_ids for a in alone] == [a.token_ids for a in batched]
    oracle = QuantisedOracle(model, mask, VALUES[values])
    found = [
        check_greedy(oracle, prompt, answer, margin=MARGIN, tolerance=TOLERANCE)
        for prompt, answer in zip(prompts, alone, strict=True)
    ]
    steps = sum(one.steps for one in found)
    assert sum(one.error for one in found) / steps <= MEAN_TOLERANCE


@pytest.fixture(scope="module")
def masks(
    tiny_model: Path, mask_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    general = mask_of(tiny_model, leave_out="up_proj")
    far = nearby_mask(general, tmp_path_factory.mktemp("masks") / "far.safetensors", 0.4)
    return {"general": general, "far": far}


@pytest.fixture(scope="module")
def directory_of(
    tiny_model: Path, masks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("lowbit")

    def make(values: str, *names: str) -> Path:
        out = folder / "-".join([values, *names])
        if not out.exists():
            chosen = {name: masks[name] for name in names}
            build(BuildRequest(tiny_model, "tiny", chosen, out, values=VALUES[values]))
        return out

    return make


@pytest.mark.parametrize("form", FORMS)
async def test_a_mask_that_is_loaded_gives_the_bytes_and_answers_of_a_build_with_it(
    form: str, tiny_model: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    values, pattern = FORMS[form]
    general = mask_of(tiny_model, leave_out="up_proj", pattern=pattern)
    masks = {"general": general, "far": nearby_mask(general, tmp_path / "far", 0.4)}
    for name, file in masks.items():
        build(BuildRequest(tiny_model, "tiny", {name: file}, tmp_path / form / name, values=values))
    directory = tmp_path / form / "general"
    engine = CpuEngine(directory, kv_bytes=1 << 20, mask_storage="copy")
    built = CpuEngine(tmp_path / form / "far", kv_bytes=1 << 20)
    kind = "sparse24" if pattern == "2:4" else "bitmap32"
    assert built.describe().layout == f"{kind}_{values.values} v1"
    record = read_manifest(directory).files["complement.safetensors"]
    complement = TiedFile(directory / "complement.safetensors", record)
    source = DenseSource(complement, engine._config, engine._model.base)
    copies = copies_of(source, read_mask(masks["far"]))
    for mine, theirs in zip(copies, built._model.base, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert one.layout is other.layout
            np.testing.assert_array_equal(one.data, other.data)
    assert (await engine.load_mask("far", masks["far"])).storage == "copy"
    prompt = list(range(5, 45))
    (loaded,) = await answers(engine, prompt, GREEDY, mask="far")
    assert [loaded] == await answers(built, prompt, GREEDY)
    await engine.close()
    await built.close()


@pytest.mark.parametrize("values", VALUES)
async def test_what_runs_is_said_by_directory_and_engine_alike(
    values: str, directory_of: Callable[..., Path]
) -> None:
    directory = directory_of(values, "general")
    engine = CpuEngine(directory, kv_bytes=1 << 20)
    info = engine.describe()
    await engine.close()
    assert info.kernels == kernels_of_directory(directory)
    assert info.layout == f"sparse24_{values} v1"
    assert f"({values}" in info.kernels["64 x 64"]
    assert info.values.startswith(values)
    manifest = json.loads((directory / "engine.json").read_text())
    if values == "bf16":
        assert "quantisation" not in manifest
        assert manifest["required_features"] == []
        return
    assert manifest["required_features"] == ["quantised-values"]
    assert manifest["quantisation"]["kind"] == "swappable"
    plain = CpuEngine(directory_of("bf16", "general"), kv_bytes=1 << 20)
    assert info.weight_bytes < 0.75 * plain.describe().weight_bytes
    assert info.numerics != plain.describe().numerics  # which is in the fingerprint
    await plain.close()


def test_patterns_that_need_such_values_say_so(
    tiny_model: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    wide = mask_of(tiny_model, pattern="16:32")
    request = BuildRequest(tiny_model, "tiny", {"wide": wide}, tmp_path / "out")
    with pytest.raises(MaskError, match=r"is 16:32; cpu runs 2:4 \(4:8, .*cpu with --values int8"):
        build(request)
    assert not (tmp_path / "out").exists()


def test_only_targets_that_have_such_kernels_take_them(tiny_model: Path, tmp_path: Path) -> None:
    request = BuildRequest(tiny_model, "tiny", {}, tmp_path / "out", values=VALUES["int8"])
    with pytest.raises(ValueError, match=r"reference has bf16 weights only; .* with: cpu, vllm"):
        run_builder("reference", request)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": 64}, "uint8 values, not"),
        ({"minima": False}, "uint8 values, not"),
        ({"version": 2}, "int4 values of version 2, this twofour runs 1"),
        ({"values": "int8", "minima": False}, "the layout says int4 values"),
        ({"head": "bf16", "head_block": 0}, "holds no bf16 weights of lm_head"),
        ({"kind": "single"}, "values by nearest are not single"),
        ({"block": 0}, "bf16 values have block 0"),
        (None, "a quantisation without"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(
    change: dict[str, Any] | None,
    message: str,
    directory_of: Callable[..., Path],
    tmp_path: Path,
) -> None:
    copy = Path(shutil.copytree(directory_of("int4", "general"), tmp_path / "engine"))
    record = json.loads((copy / "engine.json").read_text())["quantisation"]
    edit_manifest(copy, quantisation=None if change is None else record | change)
    with pytest.raises(EngineDirectoryError, match=message):
        CpuEngine(copy, kv_bytes=1 << 20)
