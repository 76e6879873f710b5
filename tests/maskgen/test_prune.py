"""One-shot pruning of whole models: the sequential pass, the choice of layers, checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from maskgen.apply import apply_mask
from maskgen.format.coverage import DenseWeight
from maskgen.format.digests import base_digest
from maskgen.format.mask import Mask, MaskFileError
from maskgen.format.model_directory import ModelDirectoryError
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import keep_from_codes, project
from maskgen.format.tokenizer import ModelTokenizer
from maskgen.method_lookup import UnknownMethodError
from maskgen.prune import PruneSettings, prune
from maskgen.registry import METHODS, load_method, method_names
from maskgen.selection import LayerChoice, SelectionError, decoder_layers, select_layers
from maskgen.texts.text_sets import TextSet
from maskgen.texts.windows import TooLittleTextError, draw_windows, token_windows
from maskgen.torch_model import apply_to_module, load_model
from tests.maskgen.masks import random_mask
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama

TEXT = TextSet.of("sample", [SAMPLE_TEXT] * 8)
SMALL = {"windows": 6, "length": 32, "dtype": "fp32"}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


def naive_wanda(model_dir: Path) -> dict[str, np.ndarray]:
    """Wanda by whole-model forward passes: linear inputs are taken anew for every decoder layer.

    The model so far is pruned in its first layers, so each layer sees what the sequential pass
    should show it.
    """
    model = load_model(model_dir, "fp32")
    windows = draw_windows(
        token_windows(ModelTokenizer(model_dir), TEXT.texts, SMALL["length"]), SMALL["windows"], 0
    )
    codes = {}
    for index, layer in enumerate(decoder_layers(model)[1]):
        linears = {
            f"model.layers.{index}.{name}": module
            for name, module in layer.named_modules()
            if isinstance(module, nn.Linear)
        }
        for name, linear in linears.items():
            squares = torch.zeros(linear.in_features, dtype=torch.float64)

            def add(
                module: nn.Module, inputs: tuple[torch.Tensor], squares: torch.Tensor = squares
            ) -> None:
                squares.add_(inputs[0].double().square().sum(dim=(0, 1)))

            handle = linear.register_forward_pre_hook(add)
            with torch.no_grad():
                for window in windows:
                    model(torch.from_numpy(window[None]).long())
            handle.remove()
            scores = linear.weight.abs() * squares.sqrt().float()
            codes[name] = project(scores.numpy(), TWO_FOUR)
        for name, linear in linears.items():
            linear.weight.mul_(torch.from_numpy(keep_from_codes(codes[name], TWO_FOUR)))
    return codes


def test_the_sequential_pass_is_wanda_layer_after_layer(model_dir: Path) -> None:
    mask = prune(model_dir, TEXT, PruneSettings("wanda", **SMALL)).mask
    expected = naive_wanda(model_dir)
    assert mask.codes.keys() == expected.keys()
    for name, codes in expected.items():
        # Sums in another order may turn a near-tie.
        assert (mask.codes[name] == codes).mean() > 0.998, name
    dense_pass = prune(
        model_dir, TEXT, PruneSettings("wanda", layers=LayerChoice(dense_first=1), **SMALL)
    ).mask
    name = "model.layers.1.mlp.down_proj"
    assert (dense_pass.codes[name] == expected[name]).mean() < 0.998


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("method", method_names("prune"))
def test_every_method_prunes_every_architecture(
    tmp_path: Path, architecture: str, method: str
) -> None:
    directory = make_tiny_llama(tmp_path / "model", architecture=architecture)
    changes = load_method(method, "prune").updates_weights
    texts = TEXT if load_method(method, "prune").uses_calibration else None
    settings = PruneSettings(
        method,
        windows=4,
        length=32,
        checkpoint=tmp_path / "checkpoint" if changes else None,
    )
    seen = []
    result = prune(directory, texts, settings, lambda done, count, name: seen.append((done, count)))
    mask = result.mask
    assert len(mask.codes) == 14
    assert result.dense == {}
    assert result.tokens == (128 if texts else 0)
    assert seen[-1][0] == seen[-1][1] == len(seen)
    assert mask.calibration_digest == (TEXT.digest if texts else None)
    owner = settings.checkpoint or directory
    assert mask.base_digest == base_digest(owner)
    model = load_model(owner, "fp32")
    apply_to_module(model, mask)
    for name, linear in select_layers(model).layers.items():
        kept = (linear.weight != 0).reshape(-1, 4).sum(dim=1)
        assert int(kept.max()) == 2, name


def test_an_update_writes_a_checkpoint_of_its_own(model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "updated"
    settings = PruneSettings("sparsegpt-update", checkpoint=out, **SMALL)
    mask = prune(model_dir, TEXT, settings).mask
    before = load_model(model_dir, "fp32").state_dict()
    after = load_model(out, "fp32").state_dict()
    assert base_digest(out) != base_digest(model_dir)
    listed = {f"{name}.weight" for name in mask.codes}
    for name, tensor in after.items():
        if name in listed:
            keep = torch.from_numpy(
                keep_from_codes(mask.codes[name.removesuffix(".weight")], TWO_FOUR)
            )
            assert (tensor[~keep] == 0).all()
            assert not torch.equal(tensor[keep], before[name][keep])
        else:
            assert torch.equal(tensor, before[name])
    assert (out / "tokenizer.json").read_bytes() == (model_dir / "tokenizer.json").read_bytes()
    with pytest.raises(FileExistsError, match="name a new directory"):
        prune(model_dir, TEXT, settings)


def test_the_same_run_gives_the_same_mask(model_dir: Path) -> None:
    first, again = (prune(model_dir, TEXT, PruneSettings("sparsegpt", **SMALL)) for _ in range(2))
    assert first.mask.digest == again.mask.digest
    other = prune(model_dir, TEXT, PruneSettings("sparsegpt", seed=1, **SMALL))
    assert other.mask.digest != first.mask.digest


def test_applied_masks_are_zeros_in_an_otherwise_equal_directory(
    model_dir: Path, tmp_path: Path
) -> None:
    mask = prune(model_dir, None, PruneSettings("magnitude")).mask
    digest = apply_mask(model_dir, mask, tmp_path / "sparse")
    assert digest == base_digest(tmp_path / "sparse") != mask.base_digest
    expected = load_model(model_dir, "bf16")
    apply_to_module(expected, mask)
    written = load_model(tmp_path / "sparse", "bf16").state_dict()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(written[name], tensor)
    assert sorted(p.name for p in (tmp_path / "sparse").iterdir()) == sorted(
        p.name for p in model_dir.iterdir()
    )
    with pytest.raises(FileExistsError):
        apply_mask(model_dir, mask, tmp_path / "sparse")


def test_a_mask_of_another_model_is_refused(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(MaskFileError, match="belongs to the base model"):
        apply_mask(model_dir, random_mask(), tmp_path / "out")
    digest = base_digest(model_dir)
    alien = {"model.layers.9.mlp.up_proj": (128, 64)}
    wide = {"model.layers.0.mlp.up_proj": (128, 128)}
    model = load_model(model_dir, "fp32")
    for shapes, message in ((alien, r"layers\.9"), (wide, "128")):
        mask: Mask = random_mask(0, shapes, base_digest=digest)
        with pytest.raises(MaskFileError, match=message):
            apply_mask(model_dir, mask, tmp_path / "out")
        with pytest.raises(MaskFileError, match=message):
            apply_to_module(model, mask)
    assert list(tmp_path.iterdir()) == []


def test_layers_can_be_left_dense(model_dir: Path, tmp_path: Path) -> None:
    model = load_model(model_dir, "fp32")
    chosen = select_layers(
        model, LayerChoice(include=["*mlp*"], exclude=["*.gate_proj"], dense_last=1)
    )
    assert list(chosen.layers) == [
        "model.layers.0.mlp.up_proj",
        "model.layers.0.mlp.down_proj",
    ]
    assert chosen.dense["model.layers.0.mlp.gate_proj"] == DenseWeight("excluded", 128 * 64)
    assert chosen.dense["model.layers.0.self_attn.q_proj"].reason == "not included"
    assert "stay dense" in chosen.dense["model.layers.1.mlp.up_proj"].reason
    for choice, message in (
        (LayerChoice(include=["*experts*"]), r"'\*experts\*' matches none of the decoder's 14"),
        (LayerChoice(dense_first=2), "no linear layer is left"),
        (LayerChoice(dense_first=-1), "cannot be negative"),
    ):
        with pytest.raises(SelectionError, match=message):
            select_layers(model, choice)
    with pytest.raises(SelectionError, match="no list of"):
        select_layers(nn.Linear(4, 4))


def test_widths_that_are_no_multiple_of_four_stay_dense(tmp_path: Path) -> None:
    directory = make_tiny_llama(tmp_path / "model", intermediate_size=126)
    result = prune(directory, TEXT, PruneSettings("wanda", **SMALL))
    assert len(result.mask.codes) == 12
    dense = DenseWeight("its width 126 is not a multiple of 4", 64 * 126)
    assert result.dense == {f"model.layers.{i}.mlp.down_proj": dense for i in range(2)}


def test_layers_that_are_no_linears_are_named_in_the_refusal() -> None:
    config = AutoConfig.for_model(
        "gpt2", n_embd=16, n_layer=2, n_head=2, vocab_size=32, bos_token_id=0, eos_token_id=0
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(
        SelectionError, match=r"transformer\.h\.0-1\.attn\.c_attn \(a 16x48 .* Conv1D"
    ):
        select_layers(model)


def test_too_little_or_wrong_input_is_refused(model_dir: Path, tmp_path: Path) -> None:
    short = TextSet.of("short", ["The river."])
    cases = [
        (short, {"method": "wanda"}, TooLittleTextError, "less than one window of 1024"),
        (TEXT, {"method": "wanda", "length": 64, "windows": 999}, TooLittleTextError, "999 were"),
        (None, {"method": "wanda"}, ValueError, "needs calibration text"),
        (TEXT, {"method": "magnitude"}, ValueError, "uses no calibration text"),
        (TEXT, {"method": "sparsegpt-update"}, ValueError, "name a directory"),
        (TEXT, {"method": "wanda", "checkpoint": tmp_path / "c"}, ValueError, "does not change"),
        (TEXT, {"method": "wanda", "dtype": "int8"}, ValueError, "dtype 'int8'"),
        (TEXT, {"method": "wnada"}, UnknownMethodError, "did you mean wanda"),
    ]
    for texts, settings, error, message in cases:
        with pytest.raises(error, match=message):
            prune(model_dir, texts, PruneSettings(**settings))
    with pytest.raises(ModelDirectoryError):
        prune(tmp_path / "missing", TEXT, PruneSettings("wanda"))
    assert list(tmp_path.iterdir()) == []


class TextDependentArguments(nn.Module):
    """A stand-in for architectures whose layers also take per-token inputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model
        self.config = model.config

    def forward(self, ids: torch.Tensor, use_cache: bool) -> None:
        hidden = self.inner.model.embed_tokens(ids)
        for layer in self.inner.model.layers:
            layer(hidden, per_layer_input=hidden * 2)


def test_text_dependent_layer_arguments_are_refused(model_dir: Path) -> None:
    from maskgen.calibration import prune_sequentially

    model = TextDependentArguments(load_model(model_dir, "fp32"))
    for layer in model.inner.model.layers:
        layer.forward = lambda hidden, per_layer_input: hidden
    windows = np.arange(16, dtype=np.int32).reshape(2, 8)
    with pytest.raises(SelectionError, match="inputs that depend on the text"):
        prune_sequentially(
            model,
            load_method("wanda", "prune")(),
            select_layers(model),
            windows,
            lambda done, count, name: None,
        )


def test_the_registry_suggests_and_separates_kinds() -> None:
    for name, entry in METHODS.items():
        assert load_method(name, entry.kind).__name__ == entry.path.partition(":")[2]
    with pytest.raises(UnknownMethodError, match=r"did you mean sparsegpt\?"):
        load_method("sparsgpt", "prune")
    with pytest.raises(UnknownMethodError, match="use `twofour mask prune`"):
        load_method("wanda", "learn")
