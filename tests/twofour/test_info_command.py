"""`twofour info` says what this machine runs, and what it lacks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engines.native import kernels
from tests.maskgen.gguf_model.tiny_gguf import make_tiny, write_tiny_gguf
from tests.tiny_model import make_tiny_llama
from twofour.cli import app


def report(*subject: object) -> dict[str, dict[str, object]]:
    result = CliRunner().invoke(app, ["info", *map(str, subject), "--json"])
    assert result.exit_code == 0, result.output
    facts: dict[str, dict[str, object]] = json.loads(result.stdout.splitlines()[-1])
    return facts


def test_the_machine_and_the_masks_that_come_with_twofour() -> None:
    facts = report()
    assert facts["machine"]["instruction_set"] == kernels.isa()
    assert facts["patterns"]["cpu"] == "2:4 (4:8, 8:16, 16:32 with int8 or int4 values)"
    assert facts["patterns"]["reference"] == "every N:M"
    assert str(facts["masks"]["smollm2-135m"]).startswith("general, ")
    assert (Path(str(facts["masks"]["folder"])) / "general.safetensors").is_file()


def test_a_machine_with_the_portable_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "supported_isas", lambda: ("portable", "avx2"))
    assert "note" not in report()["machine"]
    monkeypatch.setattr(kernels, "supported_isas", lambda: ("portable",))
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    machine = report()["machine"]
    assert machine["processor"] == "aarch64"
    assert "portable kernels only" in str(machine["note"])


def test_a_model_is_told_what_runs_it(tmp_path: Path) -> None:
    model = make_tiny("phi3", tmp_path / "model")
    facts = report(model)
    assert facts["model"]["model_type"] == "phi3"
    assert facts["runs"]["cpu"] == "tested"
    assert facts["runs"]["vllm"] == "tested"
    assert str(facts["runs"]["tensorrt-llm"]).startswith("refused: model_type 'phi3' cannot be")
    file = write_tiny_gguf(model, tmp_path / "model.gguf")
    told = report(file)
    assert told["runs"] == facts["runs"]
    assert told["model"]["weights"] == facts["model"]["weights"]
    assert told["model"]["tensors"] == "14 F32"


def test_what_a_model_lacks_is_said(tmp_path: Path) -> None:
    mixtral = make_tiny_llama(
        tmp_path / "mixtral",
        architecture="mixtral",
        num_local_experts=2,
        tie_word_embeddings=False,
    )
    runs = report(mixtral)["runs"]
    assert (runs["cpu"], runs["vllm"]) == ("tested", "not tested")
    assert str(runs["tensorrt-llm"]).startswith("refused: model_type 'mixtral' cannot be built")
    other = make_tiny_llama(
        tmp_path / "other",
        architecture="qwen2_moe",
        num_experts=4,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    )
    assert "a mixture of experts of a kind" in str(report(other)["runs"]["cpu"])
    model = make_tiny("llama", tmp_path / "model")
    config = model / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 64', '"hidden_size": 32'))
    assert "config.json says" in str(report(model)["runs"]["cpu"])
    result = CliRunner().invoke(app, ["info", "owner/name"])
    assert "'owner/name' is neither" in str(result.exception)
