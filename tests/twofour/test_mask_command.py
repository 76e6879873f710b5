"""`twofour mask` and `twofour eval`: the main path, and each kind of bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from maskgen.format.mask_file import read_mask, write_mask
from maskgen.texts import self_text
from tests.maskgen.masks import random_mask
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama
from twofour.cli import app


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_llama(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(SAMPLE_TEXT * 4)
    return str(path)


def call(*arguments: object) -> Result:
    result: Result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result


def succeed(*arguments: object) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def prune(model: str, text: str, out: Path, *more: object) -> str:
    small = ("--windows", 4, "--length", 32)
    command = ("mask", "prune", "--model", model, "--data", text, "--out", out, *small)
    return succeed(*command, *more)


def test_masks_of_another_pattern(model: str, text: str, tmp_path: Path) -> None:
    wide, usual = tmp_path / "wide.safetensors", tmp_path / "usual.safetensors"
    assert "16:32 wanda mask of 14 layers" in prune(model, text, wide, "--pattern", "16:32")
    prune(model, text, usual)
    shown = json.loads(succeed("mask", "inspect", wide, "--json"))
    assert (shown["pattern"], shown["density"]) == ("16:32", 0.5)
    assert [len(row["places"]) for row in shown["per_layer"]] == [32] * 14
    shown = succeed("mask", "inspect", wide, "--plot", tmp_path / "i.png")
    assert "0 mlp.down_proj" in shown
    assert "most" in shown
    for other in (("mask", "diff", wide, usual), ("mask", "diff", usual, wide)):
        assert "different patterns" in str(call(*other).exception)
    command = ("eval", "--model", model, "--mask", wide, "--data", text)
    scored = succeed(*command, "--window", 32, "--windows", 2, "--json")
    score = json.loads(scored.splitlines()[-1])
    assert score["perplexity"] > 1
    succeed("mask", "apply", "--model", model, "--mask", wide, "--out", tmp_path / "applied")
    refused = call("mask", "prune", "--model", model, "--out", wide, "--data", text, "--pattern", 3)
    assert "'3' is not a pattern; expected N:M, such as 2:4" in str(refused.exception)
    again = ("mask", "prune", "--model", model, "--out", wide, "--data", text)
    refused = call(*again, "--pattern", "4:8", "--parent", usual)
    assert "holds a 2:4 mask, expected 4:8" in str(refused.exception)


def test_prune_inspect_diff_apply_eval(model: str, text: str, tmp_path: Path) -> None:
    general, domain = tmp_path / "general.safetensors", tmp_path / "domain.safetensors"
    assert "wanda mask of 14 layers" in prune(model, text, general)
    prune(
        model,
        text,
        domain,
        "--method",
        "ria",
        "--domain",
        "notes",
        "--parent",
        general,
        "--seed",
        3,
    )

    shown = json.loads(succeed("mask", "inspect", domain, "--json"))
    assert (shown["method"], shown["domain"], shown["seed"]) == ("ria", "notes", 3)
    assert shown["density"] == 0.5
    assert len(shown["per_layer"]) == 14
    assert (shown["decoder_weights"], shown["weights"]) == (73728, 73728)
    inspected = succeed("mask", "inspect", domain, "--plot", tmp_path / "i.png")
    assert "0 mlp.down_proj" in inspected
    assert "masks 73,728 of the decoder's 73,728 weights (100 %)" in inspected

    difference = json.loads(succeed("mask", "diff", domain, general, "--json"))
    assert 0 < difference["changed_share"] < 1
    assert difference["stored_bits_per_weight"] >= difference["entropy_bits_per_weight"] > 0
    table = succeed("mask", "diff", domain, general, "--plot", tmp_path / "d.png")
    assert "stored as a difference" in table
    assert (tmp_path / "i.png").stat().st_size > 0
    assert (tmp_path / "d.png").stat().st_size > 0

    sparse = tmp_path / "sparse"
    applied = succeed("mask", "apply", "--model", model, "--mask", domain, "--out", sparse)
    assert "of the decoder's 73,728 weights (100 %)" in applied
    with_mask = succeed(
        "eval", "--model", model, "--mask", domain, "--data", text, "--window", 32, "--json"
    )
    applied = succeed("eval", "--model", sparse, "--data", text, "--window", 32, "--json")
    first, second = (json.loads(out.splitlines()[-1]) for out in (with_mask, applied))
    assert first["perplexity"] == second["perplexity"]
    assert (first["mask"], second["mask"]) == ("domain.safetensors", None)


def test_what_stays_dense_is_named_with_its_share(model: str, text: str, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    shown = prune(model, text, out, "--exclude", "*down_proj")
    assert "model.layers.0-1.mlp.down_proj stays dense (22.2 % of the decoder's weights)" in shown
    assert f"{out} masks 57,344 of the decoder's 73,728 weights (77.8 %)" in shown
    assert "(77.8 %)" in succeed("mask", "inspect", out)
    learned = succeed(
        "mask", "learn", "--model", model, "--data", text, "--prior", out, "--steps", 1,
        "--sequence-length", 16, "--exclude", "*down_proj", "--out", tmp_path / "l.safetensors",
    )  # fmt: skip
    assert "model.layers.0-1.mlp.down_proj stays dense (22.2 %" in learned
    assert "masks 57,344 of the decoder's 73,728 weights (77.8 %)" in learned


def test_a_file_that_does_not_know_its_decoder_says_so(model: str, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    succeed("mask", "prune", "--model", model, "--method", "magnitude", "--out", out)
    write_mask(out, replace(read_mask(out), decoder_weights=None))
    assert "the file does not say how many the decoder has" in succeed("mask", "inspect", out)
    applied = succeed("mask", "apply", "--model", model, "--mask", out, "--out", tmp_path / "o")
    assert "of the decoder's 73,728 weights (100 %)" in applied


def test_a_subset_of_windows_is_labelled(model: str, text: str) -> None:
    shown = succeed(
        "eval", "--model", model, "--data", text, "--window", 32, "--windows", 2, "--dtype", "fp32"
    )
    assert "first 2 of" in shown
    assert "fp32, no BOS" in shown


def test_sparsegpt_with_update_writes_a_checkpoint(model: str, text: str, tmp_path: Path) -> None:
    out, checkpoint = tmp_path / "m.safetensors", tmp_path / "updated"
    prune(model, text, out, "--method", "sparsegpt-update", "--checkpoint", checkpoint)
    succeed("eval", "--model", checkpoint, "--mask", out, "--data", text, "--window", 32)


def test_self_calibration(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A batch of whole documents would be sixty times what this calibration needs.
    monkeypatch.setattr(self_text, "_DOCUMENT_TOKENS", 24)
    out = tmp_path / "m.safetensors"
    prune(model, "self", out)
    assert read_mask(out).calibration_digest is not None


def test_prune_refuses_bad_input(model: str, text: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    foreign = tmp_path / "foreign.safetensors"
    write_mask(foreign, random_mask())
    out = tmp_path / "m.safetensors"
    base = {"--model": model, "--data": text, "--out": out, "--length": 32, "--windows": 2}
    cases = [
        ({"--model": "/no/such/model"}, "neither a directory nor a GGUF file nor an alias"),
        ({"--data": empty}, "holds no text"),
        ({"--data": tmp_path / "missing.txt"}, "neither a file nor a folder"),
        ({"--method": "wnada"}, "did you mean wanda"),
        ({"--windows": 10_000}, "ask for fewer or shorter windows"),
        ({"--out": tmp_path / "no" / "m.safetensors"}, "does not exist"),
        ({"--exclude": "*"}, "no linear layer is left"),
        ({"--parent": empty}, "is not a mask file"),
        ({"--parent": foreign}, "belongs to the base model"),
    ]
    for change, message in cases:
        options = [part for pair in {**base, **change}.items() for part in pair]
        result = call("mask", "prune", *options)
        assert result.exit_code != 0
        assert message in str(result.exception), change
        assert not out.exists()
    result = call("mask", "prune", "--model", model, "--out", out)
    assert "give --data" in str(result.exception)


def test_masks_that_do_not_fit_are_refused(model: str, text: str, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.safetensors"
    write_mask(foreign, random_mask())
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(foreign.read_bytes()[:-9])
    out = tmp_path / "out"
    for mask, message in ((foreign, "belongs to the base model"), (truncated, "truncated")):
        for command in (
            ("mask", "apply", "--model", model, "--mask", mask, "--out", out),
            ("eval", "--model", model, "--mask", mask, "--data", text),
        ):
            result = call(*command)
            assert result.exit_code != 0
            assert message in str(result.exception)
    assert not out.exists()
    for command in (("inspect", truncated), ("diff", foreign, truncated)):
        assert "truncated" in str(call("mask", *command).exception)


def test_evaluation_text_must_fill_a_window(model: str, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(SAMPLE_TEXT)
    result = call("eval", "--model", model, "--data", tmp_path / "short.txt", "--window", 512)
    assert "less than one window of 512" in str(result.exception)
