"""`twofour mask learn`: one run through the command line, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from maskgen.format.mask_file import read_mask
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama
from twofour.cli import app


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_tiny_llama(tmp_path / "model")
    (tmp_path / "text.txt").write_text(SAMPLE_TEXT * 4)
    return tmp_path


def learn(folder: Path, *arguments: object) -> Result:
    fixed = ["mask", "learn", "--model", folder / "model", "--data", folder / "text.txt"]
    small = ["--steps", 3, "--sequence-length", 16, "--out", folder / "m.safetensors"]
    return CliRunner().invoke(app, [str(a) for a in (*fixed, *small, *arguments)])


def test_a_run_writes_mask_log_and_checkpoint(folder):
    result = learn(
        folder, "--prior", "magnitude", "--set", "alpha=5", "--set", "tau=2,0.1",
        "--held-out", folder / "text.txt", "--held-out-every", 2,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    mask = read_mask(folder / "m.safetensors")
    assert mask.method == "maskllm"
    run = folder / "m.run"
    assert {p.name for p in run.iterdir()} == {
        "log.jsonl", "checkpoint-000003", "prior-magnitude.safetensors",
    }  # fmt: skip
    lines = (run / "log.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert "held_out" in lines[1]
    assert all(word in lines[2] for word in ("held_out", "changed", "sharpness", "eta_seconds"))
    assert "bytes per weight" in result.output
    assert "masks by native kernels for " in result.output
    assert " attention" in result.output
    assert isinstance(learn(folder, "--prior", "magnitude").exception, ValueError)
    same = ("--prior", "magnitude", "--set", "alpha=5", "--set", "tau=2,0.1")
    done = learn(folder, *same, "--resume")
    assert done.exit_code == 0
    assert "resuming after step 3" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prior", "nowhere.safetensors"], "neither a mask file nor one of magnitude"),
        (["--prior", "sparsegpt-update"], "changes weights"),
        (["--prior", "magnitude", "--set", "alpha"], "not NAME=VALUE"),
        (
            ["--prior", "magnitude", "--set", "alhpa=3"],
            "maskllm has no option 'alhpa'",
        ),
        (["--prior", "magnitude", "--set", "alpha=-3"], "alpha is '-3': must be greater than or"),
        (["--prior", "magnitude", "--method", "wanda"], "mask prune"),
    ],
)
def test_what_cannot_be_learned_is_refused(folder, arguments, message):
    result = learn(folder, *arguments)
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)
    assert not (folder / "m.safetensors").exists()
