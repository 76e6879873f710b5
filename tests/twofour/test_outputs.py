"""Where results are put, and what they start from, is checked before hours of work."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from maskgen.format.mask_file import read_mask
from maskgen.torch_model import resolve_device
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama
from twofour.cli import app

LEARN = ("--steps", 2, "--batch-size", 1, "--sequence-length", 16, "--micro-batches", 1)


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_tiny_llama(tmp_path / "m", max_position_embeddings=256)
    for name, text in (("one", SAMPLE_TEXT), ("two", SAMPLE_TEXT[::-1])):
        (tmp_path / f"{name}.txt").write_text(text * 200)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prune(out: str) -> Result:
    return run("mask", "prune", "--model", "m", "--method", "magnitude", "--out", out)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("folder", "folder is a directory; name a file"),
        ("nowhere/mask", "the folder nowhere of --out does not exist"),
        ("", "names no file"),
        ("one.txt", "exists and is no mask; name another file"),
        ("m/model.safetensors", "is a file of a model; name another"),
    ],
)
@pytest.mark.parametrize("command", ["prune", "learn", "recover"])
def test_a_mask_takes_no_other_place(folder: Path, command: str, out: str, message: str) -> None:
    before = (folder / "m" / "model.safetensors").read_bytes()
    if command == "prune":
        result = prune(out)
    elif command == "learn":
        result = run("mask", "learn", "--model", "m", "--data", "one.txt", *LEARN, "--out", out)
    else:
        assert prune("mask").exit_code == 0
        words = ("--data", "one.txt", "--checkpoint", "single", "--out", out)
        result = run("recover", "--model", "m", "--mask", "mask", *words)
    assert message in str(result.exception)
    assert (folder / "m" / "model.safetensors").read_bytes() == before
    assert not (folder / "single").exists()


def test_a_transform_takes_no_weights_place(folder: Path) -> None:
    before = (folder / "m" / "model.safetensors").read_bytes()
    words = ("--method", "assignment", "--data", "one.txt", "--out", "m/model.safetensors")
    result = run("transform", "learn", "--model", "m", *words)
    assert "is a file of a model; name another" in str(result.exception)
    assert (folder / "m" / "model.safetensors").read_bytes() == before


def test_a_mask_takes_the_place_of_a_mask(folder: Path) -> None:
    assert prune("mask").exit_code == 0
    assert prune("mask").exit_code == 0


def test_a_computed_prior_is_of_the_text_that_is_given(folder: Path) -> None:
    calibrations = []
    for text in ("one.txt", "two.txt"):
        for checkpoint in folder.glob("mask.run/checkpoint-*"):  # as if the run had not begun
            shutil.rmtree(checkpoint)
        words = ("--model", "m", "--data", text, *LEARN, "--prior", "wanda", "--out", "mask")
        result = run("mask", "learn", *words)
        assert result.exit_code == 0, result.exception
        assert "computing the prior with wanda" in result.output
        calibrations.append(read_mask(folder / "mask.run/prior-wanda.safetensors"))
    assert calibrations[0].calibration_digest != calibrations[1].calibration_digest
    again = run("mask", "learn", *words, "--resume")
    assert "starting from mask.run/prior-wanda.safetensors" in again.output.replace("\n", "")


def test_too_little_text_for_a_prior_says_how_to_make_one(folder: Path) -> None:
    (folder / "short.txt").write_text(SAMPLE_TEXT)
    words = ("--model", "m", "--data", "short.txt", *LEARN, "--prior", "wanda", "--out", "mask")
    result = run("mask", "learn", *words)
    assert "twofour mask prune --method wanda" in str(result.exception)


@pytest.mark.parametrize("device", ["cuda", "foo", "cpu:x"])
def test_a_device_that_is_not_there_is_named(folder: Path, device: str) -> None:
    if device == "cuda" and resolve_device() != "cpu":
        pytest.skip("there is one")
    assert prune("mask").exit_code == 0
    words = ("--model", "m", "--data", "one.txt", *LEARN, "--prior", "mask", "--out", "new")
    result = run("mask", "learn", *words, "--device", device)
    assert f"device '{device}' cannot be used" in str(result.exception)


@pytest.mark.parametrize("setting", ["values=int4", "minima=true", "steps=3", "learning_rate=1"])
def test_what_has_an_option_of_its_own_is_no_setting(folder: Path, setting: str) -> None:
    assert prune("mask").exit_code == 0
    words = ("--mask", "mask", "--data", "one.txt", "--checkpoint", "single", "--out", "new")
    result = run("recover", "--model", "m", *words, "--set", setting)
    option = setting.partition("=")[0].replace("_", "-")
    assert f"say --{option}" in str(result.exception)


def test_masks_of_another_model_are_refused_before_a_transformed_one_is_written(
    folder: Path,
) -> None:
    make_tiny_llama(folder / "other", seed=1)
    words = ("--method", "magnitude", "--out", "other-mask")
    assert run("mask", "prune", "--model", "other", *words).exit_code == 0
    learned = run(
        "transform", "learn", "--model", "m", "--method", "assignment", "--data", "one.txt",
        "--windows", 2, "--length", 64, "--out", "basis",
    )  # fmt: skip
    assert learned.exit_code == 0, (learned.output, learned.exception)
    words = ("--transform", "basis", "--out", "new", "--mask", "other-mask")
    result = run("transform", "apply", "--model", "m", *words)
    assert "belongs to the base model" in str(result.exception)
    assert not (folder / "new").exists()


@pytest.mark.parametrize("option", [("--dtype", "fp32"), ("--parent", "mask")])
def test_options_of_models_are_refused_with_an_engine(
    folder: Path, option: tuple[str, str]
) -> None:
    assert run("build", "--model", "m", "--out", "engine").exit_code == 0
    result = run("eval", "engine", "--data", "one.txt", "--window", 64, *option)
    assert f"{option[0]}" in str(result.exception)
    assert "goes with --model" in str(result.exception)
