"""`twofour recover`: one run through the command line, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from maskgen.format.digests import base_digest
from maskgen.format.mask_file import read_mask
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama
from twofour.cli import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recover")
    make_tiny_llama(root / "dense")
    make_tiny_llama(root / "other", seed=1)
    (root / "text.txt").write_text(SAMPLE_TEXT * 4)
    for model in ("dense", "other"):
        prune = ["mask", "prune", "--model", root / model, "--method", "magnitude"]
        made = CliRunner().invoke(app, [*map(str, prune), "--out", str(root / f"{model}.mask")])
        assert made.exit_code == 0, made.output
    return root


def recover(folder: Path, out: Path, *arguments: object, mask: str = "dense.mask") -> Result:
    fixed = ["recover", "--model", folder / "dense", "--mask", folder / mask]
    texts = ["--data", folder / "text.txt", "--held-out", folder / "text.txt"]
    small = ["--steps", 3, "--sequence-length", 16, "--held-out-every", 2, "--held-out-windows", 2]
    small += ["--set", "windows=2", "--set", "window_length=16"]
    outs = ["--checkpoint", out / "model", "--out", out / "m.safetensors"]
    return CliRunner().invoke(app, [str(a) for a in (*fixed, *texts, *small, *outs, *arguments)])


def test_a_run_writes_a_model_its_mask_and_how_it_was_made(folder, tmp_path):
    result = recover(folder, tmp_path, "--learning-rate", 1e-3, "--values", "int8")
    assert result.exit_code == 0, (result.output, result.exception)
    mask, start = read_mask(tmp_path / "m.safetensors"), read_mask(folder / "dense.mask")
    assert mask.base_digest == base_digest(tmp_path / "model") != start.base_digest
    assert mask.method == start.method
    facts = json.loads((tmp_path / "model" / "recovery.json").read_text())
    assert facts["base_digest"] == mask.base_digest
    assert facts["dense_digest"] == start.base_digest
    assert facts["mask_digest"] == start.digest
    assert facts["settings"]["final_learning_rate"] == 1e-4
    assert facts["settings"]["values"] == "int8"
    assert facts["tokens"] == 2 * 16 + 3 * 2 * 16
    assert [tokens for tokens, _ in facts["held_out_curve"]] == [0, 64, 96]
    run = tmp_path / "m.run"
    assert {path.name for path in run.iterdir()} == {"blocks", "tuning"}
    assert "best after step" in result.output.replace("\n", " ")
    again = recover(folder, tmp_path, "--learning-rate", 1e-3, "--values", "int8")
    assert "exists already" in str(again.exception)
    resumed = recover(folder, tmp_path, "--learning-rate", 1e-3, "--values", "int8", "--resume")
    assert resumed.exit_code == 0, (resumed.output, resumed.exception)
    assert "resuming after step 3" in resumed.output
    assert read_mask(tmp_path / "m.safetensors").base_digest == mask.base_digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-weights", "--no-norms", "--no-biases"], "every group of parameters is switched"),
        (["--values", "int5"], "values is 'int5': must be 'bf16', 'int8' or 'int4'"),
        (["--block", 48], "block is 48: must be 32, 64 or 128"),
        (["--set", "stepz=3"], "twofour recover has no option 'stepz'; it has: steps"),
        (["--set", "least_squares=2"], "least_squares is '2': must be less than or equal to 1"),
        (["--out", "nowhere/m.safetensors"], "the folder nowhere of --out does not exist"),
    ],
)
def test_what_cannot_be_recovered_is_refused(folder, tmp_path, arguments, message):
    result = recover(folder, tmp_path, *arguments)
    assert isinstance(result.exception, ValueError | OSError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_a_mask_of_another_base_is_refused_with_both_digests(folder, tmp_path):
    result = recover(folder, tmp_path, mask="other.mask")
    for model in ("dense", "other"):
        assert base_digest(folder / model)[:16] in str(result.exception)
    assert not list(tmp_path.iterdir())
