"""`twofour import` of GGUF files."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from maskgen.format.mask_file import read_mask
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import keep_from_codes, project
from tests.engines.conftest import LINEARS
from tests.maskgen.gguf_model.tiny_gguf import make_tiny, write_tiny_gguf
from twofour.cli import app


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose linear layers are 2:4."""
    model = make_tiny("llama", tmp_path_factory.mktemp("pruned") / "model", num_hidden_layers=1)
    tensors = load_file(model / "model.safetensors")
    for name, values in tensors.items():
        if name.removesuffix(".weight").endswith(LINEARS):
            size = np.abs(values.astype(np.float32))
            tensors[name] = np.where(
                keep_from_codes(project(size, TWO_FOUR), TWO_FOUR), values, 0
            ).astype(values.dtype)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    return model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOFOUR_CACHE", str(tmp_path / "cache"))


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["import", *map(str, arguments)])
    return result.exit_code, result.output if result.exit_code == 0 else str(result.exception)


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_0"])
def test_zeros_of_a_gguf_file_become_the_mask(name: str, pruned: Path, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType[name]
    file = write_tiny_gguf(pruned, tmp_path / "model.gguf", kind=kind)
    code, output = run(file, "--out", tmp_path / "out", "--target", "cpu")
    assert code == 0, output
    assert "give back no zeros" not in output
    mask = read_mask(tmp_path / "out" / "mask.safetensors")
    before = load_file(pruned / "model.safetensors")
    for layer in mask.codes:
        kept = before[f"{layer}.weight"].astype(np.float32) != 0
        # A type of few bits makes zeros of small values, and never values of zeros.
        assert (mask.keep(layer) | ~kept).mean() > 0.9
        if name == "F16":
            assert (mask.keep(layer) == kept).all()
    assert len(mask.codes) == 7


def test_types_that_lose_zeros_are_named(pruned: Path, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q4_1
    file = write_tiny_gguf(pruned, tmp_path / "model.gguf", kind=kind)
    code, message = run(file, "--out", tmp_path / "out")
    assert code == 1
    assert message.startswith(f"{file} has no 2:4 layer")
    assert message.endswith("matrices stored in types that give back no zeros: 7 as Q4_1")
    assert not (tmp_path / "out").exists()
