"""Mixtures of experts: every way that masks are kept, values are stored and layers are mixed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from engines.cpu.build import build
from engines.cpu.describe import kernels_of_directory
from engines.cpu.engine import CpuEngine
from engines.cpu.storage_measurement import measured_rule
from engines.directory.build import BuildRequest
from engines.directory.decoder_config import read_decoder_config
from engines.directory.manifest import ENGINE_WEIGHTS_FILE
from engines.directory.tensor_file import read_index
from engines.errors import EngineDirectoryError, MaskError
from engines.native import kernels
from engines.native._native import Layer, Limits
from engines.sampling import SamplingParams
from maskgen.experts import RareExperts
from maskgen.format.mask_file import read_mask
from maskgen.quantise import QuantiseSettings, quantise_model
from maskgen.recovery.quantiser import WeightGrid
from maskgen.texts.text_sets import TextSet
from tests.engines.conftest import FORMS, VALUES, mask_of_router, nearby_mask
from tests.engines.oracle import Oracle, check_greedy, many
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama

# As in test_equal_answers.py.
MARGIN, TOLERANCE = 0.5, 0.5
GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, logprobs=0)
TEXT = TextSet.of("sample", [SAMPLE_TEXT] * 8)
PROMPTS = [list(range(5, 30)), list(range(40, 45)), list(range(60, 90))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers with experts and layers without."""
    return make_tiny_llama(
        tmp_path_factory.mktemp("experts") / "qwen3_moe",
        architecture="qwen3_moe",
        head_dim=16,
        num_experts=5,
        num_experts_per_tok=2,
        moe_intermediate_size=96,
        num_hidden_layers=4,
        decoder_sparse_step=2,
    )


def test_names_are_those_of_the_files(model: Path, mask_of: Callable[..., Path]) -> None:
    config, mask = read_decoder_config(model), read_mask(mask_of(model))
    assert mask.shapes == config.linear_shapes() == config.part_shapes()
    assert config.router_shapes() == {f"model.layers.{n}.mlp.gate.weight": (5, 64) for n in (1, 3)}
    assert [len(config.linears(layer)) for layer in range(4)] == [7, 19, 7, 19]
    assert config.codes_of_parts(mask).keys() == mask.codes.keys()


@pytest.mark.parametrize("values", VALUES)
async def test_masks_are_loaded_and_switched(
    values: str, model: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    base, far = mask_of(model), mask_of(model, seed=1)
    near = nearby_mask(base, tmp_path / "near.safetensors", 0.01)
    request = BuildRequest(
        model, "tiny", {"base": base}, tmp_path / "engine", values=VALUES[values], with_dense=True
    )
    build(request)
    engine = CpuEngine(tmp_path / "engine", kv_bytes=8 << 20)
    await engine.load_mask("near", near)
    await engine.load_mask("far", far)
    kept = {mask.name: mask.storage for mask in engine.describe().masks}
    assert (kept["base"], kept["near"], kept["far"]) == ("base", "patch", "copy")
    found = await many(engine, PROMPTS, GREEDY, ["base", "near", "far"])
    dense = await many(engine, PROMPTS[:1], GREEDY, ["dense"])
    if values == "bf16":
        for prompt, answer, mask in zip(PROMPTS, found, (base, near, far), strict=True):
            check_greedy(Oracle(model, mask), prompt, answer, margin=MARGIN, tolerance=TOLERANCE)
        check_greedy(Oracle(model), PROMPTS[0], dense[0], margin=MARGIN, tolerance=TOLERANCE)
    await engine.unload_mask("far")
    await engine.switch_base("near")
    build(BuildRequest(model, "tiny", {"near": near}, tmp_path / "o", values=VALUES[values]))
    other = CpuEngine(tmp_path / "o", kv_bytes=8 << 20)
    for mine, theirs in zip(engine._model.base, other._model.base, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a.data, b.data)
    await engine.close()
    await other.close()


@pytest.mark.parametrize("form", FORMS)
async def test_every_form_of_values_answers_alike_alone_and_together(
    form: str, model: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    values, pattern = FORMS[form]
    mask = mask_of(model, pattern=pattern)
    build(BuildRequest(model, "tiny", {"base": mask}, tmp_path / "engine", values=values))
    engine = CpuEngine(tmp_path / "engine", kv_bytes=8 << 20, prefix_cache=False)
    together = await many(engine, PROMPTS, GREEDY)
    alone = [(await many(engine, [prompt], GREEDY))[0] for prompt in PROMPTS]
    await engine.close()
    small = {"step_tokens": 8, "max_sequences": 4, "mixed_prefill_tokens": 4}
    one = CpuEngine(tmp_path / "engine", kv_bytes=8 << 20, threads=1, **small)
    chunked = await many(one, PROMPTS, GREEDY)
    await one.close()
    for a, b, c in zip(together, alone, chunked, strict=True):
        assert a.token_ids == b.token_ids == c.token_ids
        assert a.logprobs == b.logprobs == c.logprobs


@pytest.mark.parametrize("isa", kernels.supported_isas())
async def test_every_instruction_set_follows_the_oracle(
    isa: str, model: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    mask = mask_of(model, leave_out="experts.3.up_proj")
    build(BuildRequest(model, "tiny", {"base": mask}, tmp_path / "engine"))
    assert "not listed" in kernels_of_directory(tmp_path / "engine")["96 x 64"]
    engine = CpuEngine(tmp_path / "engine", kv_bytes=8 << 20, isa=isa)
    found = await many(engine, PROMPTS, GREEDY)
    await engine.close()
    oracle = Oracle(model, mask)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        check_greedy(oracle, prompt, answer, margin=MARGIN, tolerance=TOLERANCE)


async def test_an_expert_that_nobody_chooses_changes_nothing(model: Path, tmp_path: Path) -> None:
    """Its weights are not multiplied: whatever they are, answers are bit for bit the same."""
    found = []
    for number, value in enumerate((0.0, 100.0)):
        folder = tmp_path / f"model-{number}"
        folder.mkdir()
        for file in model.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        weights = load_file(folder / "model.safetensors")
        for layer in (1, 3):
            router = weights[f"model.layers.{layer}.mlp.gate.weight"]
            router[0] = 0.0  # whatever a token is, two of the others are above it
            router[2], router[4] = -router[1], -router[3]
            for name in ("gate_proj", "up_proj", "down_proj"):
                weights[f"model.layers.{layer}.mlp.experts.0.{name}.weight"].fill_(value)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        build(BuildRequest(folder, "tiny", {}, tmp_path / f"engine-{number}"))
        engine = CpuEngine(tmp_path / f"engine-{number}", kv_bytes=8 << 20)
        found.append(await many(engine, PROMPTS, GREEDY))
        await engine.close()
    for one, other in zip(*found, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == other.logprobs


async def test_storage_is_measured_on_mixed_layers(
    model: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    build(BuildRequest(model, "tiny", {"base": mask_of(model)}, tmp_path / "engine"))
    engine = CpuEngine(tmp_path / "engine", kv_bytes=8 << 20)
    assert 0 <= measured_rule(engine._model).limit <= 0.35
    await engine.close()


def test_what_does_not_fit_is_refused(
    model: Path, mixtral: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(MaskError, match="was made for the model"):
        build(BuildRequest(mixtral, "m", {"base": mask_of(model)}, tmp_path / "engine"))
    router = mask_of_router(mixtral, tmp_path / "router.safetensors")
    with pytest.raises(MaskError, match=r"moe\.gate, which the cpu engine keeps dense"):
        build(BuildRequest(mixtral, "m", {"base": router}, tmp_path / "engine"))
    weights = load_file(mixtral / "model.safetensors")
    del weights["model.layers.0.block_sparse_moe.experts.1.w3.weight"]
    broken = tmp_path / "broken"
    broken.mkdir()
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (broken / name).write_bytes((mixtral / name).read_bytes())
    with pytest.raises(EngineDirectoryError, match=r"1 are missing, such as .*experts\.1\.w3"):
        build(BuildRequest(broken, "m", {}, tmp_path / "engine"))


def test_the_decoder_checks_routers_and_numbers_of_experts(model: Path, tmp_path: Path) -> None:
    build(BuildRequest(model, "tiny", {}, tmp_path / "engine"))
    engine = CpuEngine(tmp_path / "engine", kv_bytes=8 << 20)
    own = engine._model
    limits = Limits(4, 1, 16, 4, 1)
    layers = own._layers
    with pytest.raises(ValueError, match="another number of linear weights"):
        own.decoder(limits, 2).add_weights(
            [[weights.native for weights in layer] for layer in (own.base[0], own.base[0])]
        )
    narrow = np.zeros((5, 60), np.float32)
    own._layers = [
        Layer(
            attention_input=None,
            mlp_input=None,
            window=0,
            q_norm=None,
            k_norm=None,
            biases=[None] * 7,
            router=router,
        )
        for router in (narrow, np.zeros((1, 64), np.float32))
    ]
    with pytest.raises(ValueError, match="another shape than experts x hidden"):
        own.decoder(limits, 1)
    own._layers = own._layers[1:]
    with pytest.raises(ValueError, match="a token goes to 2 of 1 experts"):
        own.decoder(limits, 1)
    own._layers = layers


def test_values_of_experts_are_made_with_error_feedback(model: Path, tmp_path: Path) -> None:
    rare = RareExperts(10_000)
    settings = QuantiseSettings(WeightGrid("int8", 32), windows=4, length=32, dtype="fp32")
    quantise_model(model, TEXT, settings, tmp_path / "values.safetensors", rare=rare)
    assert len(rare.lines()) == 2
    request = BuildRequest(
        model, "tiny", {}, tmp_path / "engine", values_file=tmp_path / "values.safetensors"
    )
    build(request)
    written = read_index(tmp_path / "engine" / ENGINE_WEIGHTS_FILE)
    assert "model.layers.1.mlp.experts.3.up_proj.dense_int8" in written
