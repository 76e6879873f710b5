"""Mixtures of experts: linears of the files' names, statistics by expert, masks on both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from maskgen.apply import apply_mask, with_decoder_weights
from maskgen.calibration import dense_statistics
from maskgen.experts import RareExperts
from maskgen.format.experts import EXPERTS, is_router
from maskgen.format.mask_file import read_mask
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import project
from maskgen.format.tokenizer import ModelTokenizer
from maskgen.methods.base import SquaredNorms
from maskgen.prune import PruneSettings, prune
from maskgen.recover import recover
from maskgen.recovery.config import RecoverConfig
from maskgen.recovery.request import RecoverRequest
from maskgen.selection import LayerChoice, SelectionError, select_layers
from maskgen.texts.text_sets import TextSet
from maskgen.texts.windows import draw_windows, token_windows
from maskgen.torch_model import apply_to_module, load_model
from tests.maskgen.learning_runs import TEXTS, losses, magnitude_prior, small_run
from tests.maskgen.recovery_runs import SMALL as SMALL_RECOVERY
from tests.maskgen.recovery_runs import small_recovery
from tests.maskgen.routers import choose_first_experts
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama
from twofour.cli import app

TEXT = TextSet.of("sample", [SAMPLE_TEXT] * 8)
SMALL: dict[str, Any] = {"windows": 6, "length": 32, "dtype": "fp32"}
SHAPES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {
        "num_experts": 4,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 32,
    },
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 48, "head_dim": 16},
    "olmoe": {"num_experts": 4},
}
IDS = torch.arange(5, 45)[None]


def make(folder: Path, architecture: str, **config: Any) -> Path:
    fields = {"num_experts_per_tok": 2, "tie_word_embeddings": False} | SHAPES[architecture]
    return make_tiny_llama(folder / architecture, architecture=architecture, **fields | config)


@pytest.fixture(scope="module", params=SHAPES)
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("experts"), request.param)


def stored_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def test_every_family_has_a_test() -> None:
    assert SHAPES.keys() == EXPERTS.keys()


def test_modules_bear_the_names_of_the_files_and_answers_stay(model_dir: Path) -> None:
    model = load_model(model_dir, "fp32")
    modules = dict(model.named_modules())
    experts = [name for name in stored_shapes(model_dir) if ".experts." in name]
    assert len(experts) == 2 * 4 * 3
    for name in experts:
        assert isinstance(modules[name.removesuffix(".weight")], nn.Linear)
    stored = load_file(model_dir / "model.safetensors")
    for name in experts:
        assert torch.equal(model.get_parameter(name).bfloat16(), stored[name])
    fused = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(model), logits(fused), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "sparsegpt-update"])
def test_masks_list_every_expert_and_no_router(
    model_dir: Path, tmp_path: Path, method: str
) -> None:
    update = method == "sparsegpt-update"
    settings = PruneSettings(method, checkpoint=tmp_path / "new" if update else None, **SMALL)
    result = prune(model_dir, None if method == "magnitude" else TEXT, settings)
    shapes = stored_shapes(model_dir)
    matrices = {n for n, s in shapes.items() if ".layers." in n and len(s) == 2}
    routers = {name for name in matrices if is_router(name)}
    assert len(routers) == (4 if model_dir.name == "qwen2_moe" else 2)
    assert {f"{name}.weight" for name in result.mask.codes} == matrices - routers
    assert len(result.dense) == len(routers)
    owner = settings.checkpoint or model_dir
    assert with_decoder_weights(result.mask, owner).decoder_weights == result.mask.decoder_weights
    apply_mask(owner, result.mask, tmp_path / "applied")
    written = load_file(tmp_path / "applied" / "model.safetensors")
    for name in result.mask.codes:
        kept = (written[f"{name}.weight"] != 0).reshape(-1, 4).sum(dim=1)
        assert int(kept.max()) == 2, name
    model = load_model(owner, "fp32")
    apply_to_module(model, result.mask)
    torch.testing.assert_close(logits(model), logits(load_model(tmp_path / "applied", "fp32")))
    # And transformers, with its fused experts, reads the same zeros.
    fused = AutoModelForCausalLM.from_pretrained(tmp_path / "applied", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(model), logits(fused), rtol=1e-4, atol=1e-4)


def rows_of_first_layer(model_dir: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What the first layer's mixture reads, and what its router chooses, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    windows = draw_windows(
        token_windows(ModelTokenizer(model_dir), TEXT.texts, SMALL["length"]), SMALL["windows"], 0
    )
    seen: list[torch.Tensor] = []
    chosen: list[torch.Tensor] = []
    block = model.model.layers[0].mlp
    block.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    block.gate.register_forward_hook(lambda _, args, output: chosen.append(output[2]))
    with torch.no_grad():
        for window in windows:
            model(torch.from_numpy(window[None]).long())
    return torch.cat(seen), torch.cat(chosen)


def test_an_expert_is_judged_on_the_tokens_that_chose_it(model_dir: Path) -> None:
    model = load_model(model_dir, "fp32")
    attention = {n: m for n, m in select_layers(model).layers.items() if ".experts." in n}
    hidden, chosen = rows_of_first_layer(model_dir)
    counts = [int((chosen == number).any(dim=1).sum()) for number in range(4)]
    assert len(set(counts)) > 1
    least = sorted(counts)[1]  # one expert, at least, is rarer
    windows = draw_windows(
        token_windows(ModelTokenizer(model_dir), TEXT.texts, SMALL["length"]), SMALL["windows"], 0
    )
    rare = RareExperts(least)
    statistics = next(
        dense_statistics(
            model, attention, SquaredNorms, windows, lambda done, count, name: None, rare
        )
    )
    names = EXPERTS[model.config.model_type]
    place = f"model.layers.0.{names.block}.experts"
    assert rare.found[place] == {n: rows for n, rows in enumerate(counts) if rows < least}
    for number, rows in enumerate(counts):
        own = hidden if rows < least else hidden[(chosen == number).any(dim=1)]
        expert: Any = model.get_submodule(f"{place}.{number}")
        gate, up = expert.get_submodule(names.gate), expert.get_submodule(names.up)
        with torch.no_grad():
            inner = nn.functional.silu(gate(own)) * up(own)
        for name, inputs in ((names.gate, own), (names.up, own), (names.down, inner)):
            found = statistics[f"{place}.{number}.{name}"]
            assert isinstance(found, SquaredNorms)
            torch.testing.assert_close(found.norms, inputs.norm(dim=0), rtol=1e-4, atol=1e-4)
    line = rare.lines()[0]
    assert line.startswith(f"{place}: fewer than {least} calibration tokens chose")


@pytest.mark.parametrize("least", [0, 10_000])
def test_wanda_prunes_by_those_statistics(tmp_path: Path, least: int) -> None:
    model_dir = make(tmp_path, "mixtral", num_hidden_layers=1)
    hidden, chosen = rows_of_first_layer(model_dir)
    choice = LayerChoice(include=["*.experts.*"])
    settings = PruneSettings("wanda", layers=choice, expert_rows=least, **SMALL)
    mask = prune(model_dir, TEXT, settings).mask
    stored = load_file(model_dir / "model.safetensors")
    for number in range(4):
        name = f"model.layers.0.block_sparse_moe.experts.{number}.w1"
        own = hidden if least else hidden[(chosen == number).any(dim=1)]
        scores = stored[f"{name}.weight"].float().abs() * own.norm(dim=0)
        assert (mask.codes[name] == project(scores.numpy(), TWO_FOUR)).mean() > 0.998


def test_an_expert_that_nobody_chose_is_pruned_and_named(tmp_path: Path) -> None:
    model_dir = make(tmp_path, "olmoe", num_experts=5)
    path = model_dir / "model.safetensors"
    weights = load_file(path)
    for layer in range(2):
        router = weights[f"model.layers.{layer}.mlp.gate.weight"]
        router[0] = 0.0  # whatever a token is, two of the others are above it
        router[2], router[4] = -router[1], -router[3]
    save_file(weights, path, {"format": "pt"})
    result = prune(model_dir, TEXT, PruneSettings("wanda", expert_rows=1, **SMALL))
    assert result.rare.found == {f"model.layers.{layer}.mlp.experts": {0: 0} for layer in range(2)}
    assert len(result.mask.codes) == 2 * (4 + 15)


def test_experts_that_the_files_hold_fused_stay_dense_and_are_named(tmp_path: Path) -> None:
    model_dir = make(tmp_path, "mixtral")
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "fused" / name).write_bytes((model_dir / name).read_bytes())
    result = prune(tmp_path / "fused", None, PruneSettings("magnitude"))
    assert not any(".experts" in name for name in result.mask.codes)
    reason = result.dense["model.layers.0.mlp.experts.gate_up_proj"].reason
    assert "4x256x64 parameter of MixtralExperts" in reason


def test_the_command_says_which_experts_are_rare(tmp_path: Path) -> None:
    model_dir = make(tmp_path, "qwen3_moe")
    (tmp_path / "text.txt").write_text(SAMPLE_TEXT * 8)
    arguments = ["mask", "prune", "--model", str(model_dir), "--data", str(tmp_path / "text.txt")]
    arguments += ["--windows", "4", "--length", "32", "--dtype", "fp32"]
    out = tmp_path / "mask.safetensors"
    outcome = CliRunner().invoke(app, [*arguments, "--out", str(out)])
    assert outcome.exit_code == 0, outcome.output
    said = " ".join(outcome.output.split())
    assert "model.layers.0.mlp.experts: fewer than 256 calibration tokens chose 0 (" in said
    assert "judged on all tokens of the layer" in said
    assert "mlp.gate stays dense" in said
    assert any(".experts.3." in name for name in read_mask(out).codes)
    outcome = CliRunner().invoke(app, [*arguments, "--expert-rows", "0", "--out", str(out)])
    said = " ".join(outcome.output.split())
    assert "fewer than" not in said
    scored = CliRunner().invoke(
        app,
        [
            *("eval", "--model", str(model_dir), "--mask", str(out)),
            *("--data", str(tmp_path / "text.txt"), "--window", "32", "--dtype", "fp32", "--json"),
        ],
    )
    assert scored.exit_code == 0, scored.output
    assert '"perplexity"' in scored.output
    shown = CliRunner().invoke(app, ["mask", "inspect", str(out), "--json"])
    assert "model.layers.1.mlp.experts.3.down_proj" in shown.output


def test_an_excluded_glob_of_experts_is_checked(tmp_path: Path) -> None:
    model = load_model(make(tmp_path, "mixtral"), "fp32")
    chosen = select_layers(model, LayerChoice(exclude=["*.experts.2.*"]))
    assert "model.layers.0.block_sparse_moe.experts.2.w1" in chosen.dense
    with pytest.raises(SelectionError, match="matches none"):
        select_layers(model, LayerChoice(exclude=["*.experts.9.*"]))


def test_masks_of_experts_are_learned(tmp_path: Path) -> None:
    model_dir = make(tmp_path, "mixtral", num_local_experts=2)
    prior = magnitude_prior(model_dir)
    result = small_run(model_dir, tmp_path / "run", "maskllm", prior, dtype="fp32")
    assert result.mask.shapes == prior.shapes
    assert all(np.isfinite(losses(tmp_path / "run")))
    changed = [n for n in prior.codes if (result.mask.codes[n] != prior.codes[n]).any()]
    assert any(".experts." in name for name in changed)


@pytest.mark.parametrize("values", ["bf16", "int4"])
def test_a_mixture_can_be_recovered(model_dir, tmp_path, values):
    """Experts, those that no token chose too, keep their zeros and the model gets better."""
    mask = magnitude_prior(model_dir)
    small_recovery(model_dir, tmp_path, mask, held_out=TEXTS, steps=20, batch_size=8, values=values)
    log = (tmp_path / "run" / "tuning" / "log.jsonl").read_text().splitlines()
    curve = [row["held_out"] for row in map(json.loads, log) if "held_out" in row]
    assert min(curve) < curve[0] - 0.2
    recovered = load_model(tmp_path / "model", "fp32", "cpu")
    experts = [name for name in mask.codes if ".experts." in name]
    assert experts
    for name in mask.codes:
        assert not recovered.get_submodule(name).weight[~torch.from_numpy(mask.keep(name))].any()


def test_experts_that_no_token_chose_are_solved_for_on_all(tmp_path):
    """Two experts see no token, and recovery says so."""
    model_dir = make(tmp_path, "mixtral")
    choose_first_experts(model_dir)
    mask = magnitude_prior(model_dir)
    said = Console(record=True, width=200)
    request = RecoverRequest(
        RecoverConfig.model_validate({**SMALL_RECOVERY, "steps": 0, "least_squares": 1.0}),
        tmp_path / "run",
        tmp_path / "recovered",
        dtype="fp32",
    )
    recover(model_dir, mask, TEXTS, request, said)
    assert "fewer than 256 calibration tokens chose" in said.export_text()
    before, after = (load_model(path, "fp32") for path in (model_dir, tmp_path / "recovered"))
    for expert in range(4):
        name = f"model.layers.0.block_sparse_moe.experts.{expert}.w1"
        kept = torch.from_numpy(mask.keep(name))
        old, new = (m.get_submodule(name).weight for m in (before, after))
        assert not torch.equal(old * kept, new)
