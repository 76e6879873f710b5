"""`twofour structure`: what it writes, says and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from maskgen.format.digests import base_digest
from maskgen.structure.file import read_structure
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama
from twofour.cli import app


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_tiny_llama(tmp_path / "model")


def learn(model: Path, out: Path, *more: object) -> str:
    command = ("structure", "learn", "--model", model, "--out", out, "--multiple", 8)
    return run(*command, *more)


def test_units_are_chosen_shown_and_removed(model: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "s.safetensors", tmp_path / "small"
    said = learn(model, file, "--method", "magnitude", "--ratio", 0.5, "--heads", 1)
    assert "magnitude, 64 channels, 1 key-value heads a layer, 50.0 % of the linears'" in said
    facts = json.loads(run("structure", "inspect", file, "--json"))
    assert (facts["intermediate_size"], facts["num_key_value_heads"]) == (64, 1)
    assert facts["base_digest"] == base_digest(model)
    assert "structure digest: " in run("structure", "inspect", file)
    said = run("structure", "apply", "--model", model, "--structure", file, "--out", out)
    assert base_digest(out) in said.replace("\n", "")
    assert base_digest(out) == facts["result_digest"]


def test_a_budget_of_measured_time(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Times of a machine on which two microseconds pass whatever the width.
    line = {"fixed": 2e-6, "unit": 1e-8}
    monkeypatch.setattr(
        "engines.cpu.layer_latency._times",
        lambda units, layers: {n: line["fixed"] + line["unit"] * n for n in units},
    )
    file, out = tmp_path / "latency.json", tmp_path / "s.safetensors"
    said = run("structure", "latency", "--model", model, "--out", file)
    assert "a layer takes 5.3 us" in said
    assert "a channel 0.0100 us" in said
    said = learn(model, out, "--method", "magnitude", "--ratio", 0.9, "--latency", file)
    assert "72 channels, 2 key-value heads a layer, 70.8 % of the linears' weights" in said
    assert "and 89.4 % of their time" in said


def test_gates_learn_on_several_texts_with_the_seed_that_is_given(
    model: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(SAMPLE_TEXT * 2)
    file = tmp_path / "s.safetensors"
    small = [f"--set={setting}" for setting in ("steps=2", "sequence_length=32")]
    texts = ("--data", tmp_path / "a", "--data", tmp_path / "b", "--windows", 2, "--length", 32)
    said = learn(model, file, "--method", "grasp", "--ratio", 0.6, "--seed", 5, *texts, *small)
    assert "grasp, 48 channels, 2 key-value heads a layer" in said
    structure = read_structure(file)
    assert structure.record.seed == 5
    assert '"seed": 5' in (tmp_path / "s.run" / "checkpoint-000002" / "state.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "taylor", "--ratio", 0.5), "methods: magnitude, flap, grasp, maskprune"),
        (("--method", "flap", "--ratio", 0.5), "flap needs calibration text"),
        (("--method", "magnitude", "--ratio", 0.1), "the smallest is"),
        (("--method", "magnitude", "--ratio", 0.5, "--heads", 3), "between 1 and the model's 2"),
        (("--method", "magnitude", "--ratio", 0.5, "--set", "steps=3"), "steps"),
    ],
)
def test_bad_requests_are_refused(
    model: Path, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    out = tmp_path / "s.safetensors"
    with pytest.raises(ValueError, match=message):
        learn(model, out, *arguments)
    assert not out.exists()
