from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from maskgen import models
from maskgen.format.digests import base_digest
from maskgen.gguf_model.header import GgufError
from maskgen.models import ModelNotFoundError, TermsError, model_name, resolve_model
from maskgen.torch_model import resolve_device, resolve_dtype
from tests.maskgen.gguf_model.tiny_gguf import make_tiny, write_tiny_gguf
from twofour.cli import app


def test_a_local_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path)) == tmp_path
    assert model_name(str(tmp_path)) == tmp_path.name


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no-such-alias", "smollm2-135m"),
        ("/no/such/folder", "neither a directory"),
        ("./missing", "neither a directory"),
        ("owner/name", "HF_HUB_OFFLINE is set"),
    ],
)
def test_missing_models_say_what_was_tried(model: str, message: str) -> None:
    with pytest.raises(ModelNotFoundError, match=message):
        resolve_model(model)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        resolve_model(str(tmp_path))


def test_killed_dequantisation_leaves_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWOFOUR_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "fetch", lambda _: tmp_path / "model.gguf")

    def die_half_way(_: Path, directory: Path) -> None:
        directory.mkdir(parents=True)
        (directory / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "write_model_directory", die_half_way)
    with pytest.raises(KeyboardInterrupt):
        resolve_model("smollm2-135m")
    assert not list(tmp_path.glob("models/*"))

    def finish(_: Path, directory: Path) -> None:
        directory.mkdir(parents=True)
        (directory / "config.json").write_text("{}")

    monkeypatch.setattr(models, "write_model_directory", finish)
    directory = resolve_model("smollm2-135m")
    assert (directory / "config.json").is_file()
    assert resolve_model("smollm2-135m") == directory


def test_an_alias_with_terms_is_fetched_with_consent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWOFOUR_CACHE", str(tmp_path / "cache"))
    file = write_tiny_gguf(make_tiny("gemma3_text", tmp_path / "model"), tmp_path / "gemma.gguf")
    monkeypatch.setattr(models, "fetch_pieces", lambda _: file)
    with pytest.raises(TermsError, match=r"gemma/terms.*data fetch --alias gemma3-270m"):
        resolve_model("gemma3-270m")
    command = ["data", "fetch", "--alias", "gemma3-270m"]
    refused = CliRunner().invoke(app, command, input="n\n")
    assert refused.exit_code == 1
    assert not (tmp_path / "cache").exists()
    accepted = CliRunner().invoke(app, command, input="y\n")
    assert accepted.exit_code == 0, accepted.output
    assert resolve_model("gemma3-270m") == models.cached_directory("gemma3-270m")
    unknown = CliRunner().invoke(app, ["data", "fetch", "--alias", "x"])
    assert "none of smollm2-135m, gemma3-270m" in str(unknown.exception)


def test_a_gguf_file_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOFOUR_CACHE", str(tmp_path / "cache"))
    model = make_tiny("llama", tmp_path / "model")
    file = write_tiny_gguf(model, tmp_path / "some.gguf")
    directory = resolve_model(str(file))
    assert directory.is_relative_to(tmp_path / "cache")
    assert model_name(str(file)) == "some"
    assert resolve_model(str(file)) == directory
    file.rename(tmp_path / "other")  # known by its content
    write_tiny_gguf(make_tiny("llama", tmp_path / "new", seed=1), file)
    assert base_digest(resolve_model(str(tmp_path / "other"))) == base_digest(directory)
    assert base_digest(resolve_model(str(file))) != base_digest(directory)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(GgufError, match=r"x\.gguf is not a GGUF file"):
        resolve_model(str(tmp_path / "x.gguf"))


@pytest.mark.parametrize(
    ("has_bf16", "device", "expected"),
    [(True, "cpu", "bf16"), (False, "cpu", "fp32"), (False, "cuda:0", "bf16")],
)
def test_auto_computes_in_what_the_processor_is_fast_in(monkeypatch, has_bf16, device, expected):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: has_bf16)
    assert resolve_dtype("auto", device) == expected
    assert resolve_dtype("fp16", device) == "fp16"


def test_an_unknown_dtype_is_named():
    with pytest.raises(ValueError, match=r"'fp8' is not one of auto, bf16, fp32, fp16"):
        resolve_dtype("fp8")


def test_each_rank_of_a_node_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert (resolve_device(), resolve_device("cuda")) == ("cuda", "cuda")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert [resolve_device(d) for d in (None, "cuda", "cuda:1", "cpu")] == [
        "cuda:3", "cuda:3", "cuda:1", "cpu",
    ]  # fmt: skip
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_device() == "cpu"
