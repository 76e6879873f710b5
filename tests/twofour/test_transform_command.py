"""`twofour transform`, and `--transform` of the commands that take a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from maskgen.format.digests import base_digest
from maskgen.format.mask_file import read_mask
from maskgen.transform.absorb import BESIDE, with_result
from maskgen.transform.file import write_transform
from tests.maskgen.transform.random_transforms import random_transform
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama
from twofour.cli import app


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWOFOUR_CACHE", str(tmp_path / "cache"))
    return make_tiny_llama(tmp_path / "model")


@pytest.fixture
def transform(model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "random.safetensors"
    write_transform(path, with_result(model, random_transform(model)))
    return path


def test_apply_writes_a_base_and_carries_masks_over(
    model: Path, transform: Path, tmp_path: Path
) -> None:
    old, out = tmp_path / "old.safetensors", tmp_path / "out"
    run("mask", "prune", "--model", model, "--method", "magnitude", "--out", old)
    said = run("transform", "apply", "--model", model, "--transform", transform, "--out", out,
               "--mask", old)  # fmt: skip
    assert base_digest(out) in said
    assert "old.safetensors: keeps " in said
    assert (out / BESIDE).read_bytes() == transform.read_bytes()
    assert read_mask(out / "masks" / "old.safetensors").base_digest == base_digest(out)


def test_learn_writes_what_it_found_and_goes_on_from_it(model: Path, tmp_path: Path) -> None:
    text, turned, both = tmp_path / "t.txt", tmp_path / "r.safetensors", tmp_path / "b.safetensors"
    text.write_text(SAMPLE_TEXT * 4)
    common = ("transform", "learn", "--model", model, "--data", text, "--windows", 4,
              "--length", 32, "--dtype", "fp32")  # fmt: skip
    said = run(*common, "--method", "rotation", "--set", "steps=3", "--out", turned)
    assert "entropy before" in said
    said = run(*common, "--method", "assignment", "--start", turned, "--out", both)
    assert "rotation + assignment, retained before" in said
    assert "the likeliest token at " in said
    facts = json.loads(run("transform", "inspect", both, "--json"))
    assert facts["base_digest"] == base_digest(model)
    assert {row["what"] for row in facts["groups"]} == {"permutation", "rotation"}
    run("transform", "learn", "--model", model, "--method", "zigzag", "--set", "score=magnitude",
        "--out", tmp_path / "z.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match="zigzag needs calibration text"):
        run("transform", "learn", "--model", model, "--method", "zigzag",
            "--out", tmp_path / "w.safetensors")  # fmt: skip


def test_inspect(transform: Path) -> None:
    facts = json.loads(run("transform", "inspect", transform, "--json"))
    assert (facts["architecture"], facts["method"], facts["seed"]) == ("llama", "random", 0)
    residual = next(row for row in facts["groups"] if row["group"] == "residual")
    assert (residual["what"], residual["blocks"], residual["channels"]) == ("permutation", 1, 64)
    assert 0.9 < residual["moved"] < 1
    assert "layers.1.value" in run("transform", "inspect", transform)


def test_commands_take_the_transformed_model(model: Path, transform: Path, tmp_path: Path) -> None:
    out, mask, text = tmp_path / "out", tmp_path / "m.safetensors", tmp_path / "text.txt"
    text.write_text(SAMPLE_TEXT * 4)
    run("transform", "apply", "--model", model, "--transform", transform, "--out", out)
    with_it = ("--model", model, "--transform", transform)
    run("mask", "prune", *with_it, "--method", "magnitude", "--out", mask)
    assert read_mask(mask).base_digest == base_digest(out)
    measured = {}
    for name, chosen in (("there", ("--model", out)), ("here", with_it)):
        told = run("eval", *chosen, "--mask", mask, "--data", text, "--window", 64, "--json")
        measured[name] = json.loads(told.splitlines()[-1])["perplexity"]
    assert measured["there"] == measured["here"]
    run("build", *with_it, "--mask", f"m={mask}", "--out", tmp_path / "engine")
    engine = run(
        "eval", tmp_path / "engine", "--mask", "m", "--data", text, "--window", 64, "--json"
    )
    assert json.loads(engine.splitlines()[-1])["perplexity"] == pytest.approx(
        measured["here"], rel=0.02
    )


def test_a_transform_of_another_base_is_refused(
    model: Path, transform: Path, tmp_path: Path
) -> None:
    other = make_tiny_llama(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="belongs to the base model"):
        run("mask", "prune", "--model", other, "--transform", transform, "--method", "magnitude",
            "--out", tmp_path / "m.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match="a transform goes with --model"):
        run("eval", tmp_path, "--transform", transform, "--data", "c4")
    with pytest.raises(ValueError, match="there is no transform file"):
        run("transform", "inspect", tmp_path / "none")
    assert not (tmp_path / "cache" / "transformed").exists()
