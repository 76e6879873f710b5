"""`twofour eval` gives one number for one model, whatever runs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from engines.directory.build import BuildRequest
from engines.registry import run_builder
from evaluation import server_subject as scoring
from evaluation.subject import TokenScore
from tests.engines.conftest import random_mask
from tests.serving.conftest import start_process
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama
from twofour.cli import app

CONTEXT = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model/`, two masks, `text.txt`, and a reference engine of them."""
    folder = tmp_path_factory.mktemp("eval")
    model = make_tiny_llama(folder / "model", bos=True, max_position_embeddings=CONTEXT)
    masks = {
        name: random_mask(model, folder / f"{name}.safetensors", seed=seed)
        for seed, name in enumerate(("general", "french"))
    }
    # Longer than any prompt of this context could be.
    (folder / "text.txt").write_text(SAMPLE_TEXT * 40)
    run_builder("reference", BuildRequest(model, "tiny", masks, folder / "engine"))
    return folder


def evaluate(folder: Path, *arguments: str) -> dict[str, object]:
    """On two windows as long as the context."""
    windows = ["--window", str(CONTEXT), "--windows", "2"]
    command = ["eval", "--data", str(folder / "text.txt"), *windows, "--json", *arguments]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output + repr(result.exception)
    values: dict[str, object] = json.loads(result.stdout.splitlines()[-1])
    return values


def test_model_engine_and_server_agree(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_torch = evaluate(
        folder,
        *("--model", str(folder / "model"), "--dtype", "fp32"),
        *("--mask", str(folder / "french.safetensors")),
    )
    engine = evaluate(folder, str(folder / "engine"), "--mask", "french")
    command = [sys.executable, "-m", "twofour.cli", "serve", str(folder / "engine"), "--port", "0"]
    server = start_process([*command, "--api-key", "key"])
    monkeypatch.setenv("TWOFOUR_EVAL_API_KEY", "key")
    try:
        served = evaluate(folder, server.url + "/v1", "--mask", "french")
        default = evaluate(folder, server.url)
        refused = ["eval", server.url, "--data", str(folder / "text.txt"), "--api-key", "wrong"]
        answer = CliRunner().invoke(app, refused)
        longer = ["--data", str(folder / "text.txt"), "--window", str(CONTEXT + 1)]
        targets = [server.url], [str(folder / "engine")], ["--model", str(folder / "model")]
        too_long = [CliRunner().invoke(app, ["eval", *target, *longer]) for target in targets]
    finally:
        server.stop()
    assert "/v1/models answered 401" in str(answer.exception)
    for refusal in too_long:
        assert f"a window of {CONTEXT + 1} tokens is longer than" in str(refusal.exception)
        assert f"use --window {CONTEXT} or less" in str(refusal.exception)
    assert in_torch["windows_available"] == served["windows_available"] > 50
    assert in_torch["bos"] is engine["bos"] is served["bos"] is True
    assert in_torch["tokens"] == engine["tokens"] == served["tokens"]
    for other in (engine, served):
        assert other["perplexity"] == pytest.approx(in_torch["perplexity"], rel=1e-4)
        assert (other["model"], other["mask"]) == ("tiny", "french")
    assert engine["dtype"] == "fp32"
    assert default["perplexity"] != pytest.approx(in_torch["perplexity"], rel=1e-3)


def test_the_dense_model_beside_masks_is_measured_by_its_name(folder: Path) -> None:
    masks = {"general": folder / "general.safetensors"}
    for name, held in (("both", masks), ("none", {})):
        request = BuildRequest(
            folder / "model", "tiny", held, folder / name, with_dense=bool(held), overwrite=True
        )
        run_builder("cpu", request)
    beside = evaluate(folder, str(folder / "both"), "--mask", "dense")
    alone = evaluate(folder, str(folder / "none"))
    assert beside["mask"] is alone["mask"] is None
    assert beside["perplexity"] == alone["perplexity"]


@pytest.mark.parametrize(("owner", "longest"), [("twofour", CONTEXT), ("vllm", CONTEXT - 1)])
def test_a_server_is_asked_to_score_only(
    monkeypatch: pytest.MonkeyPatch, owner: str, longest: int
) -> None:
    """vLLM takes no tokens only with echo, and wants room for one all the same."""
    asked: list[dict[str, object]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            card = {"id": "tiny", "owned_by": owner, "max_model_len": CONTEXT}
            return httpx.Response(200, json={"data": [card]})
        if request.url.path == "/tokenize":
            return httpx.Response(200, json={"tokens": []})
        asked.append(json.loads(request.content))
        entry = {"4": {"logprob": -1.5, "rank": 2}}
        return httpx.Response(200, json={"choices": [{"prompt_logprobs": [None, entry]}]})

    client = httpx.Client(base_url="http://server", transport=httpx.MockTransport(answer))
    monkeypatch.setattr(scoring, "_connect", lambda url, key: client)
    with scoring.server_subject("http://server", None, None, None) as subject:
        assert subject.context_length == longest
        assert subject.token_scores([3, 4]) == [TokenScore(-1.5, False)]
    assert [body["prompt"] for body in asked] == [[3, 4]]
    assert (asked[0]["max_tokens"], asked[0]["echo"], asked[0]["prompt_logprobs"]) == (0, True, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --model, an engine directory, or"),
        (["/no/such/engine"], "engine"),
        (["http://127.0.0.1:9"], "127.0.0.1:9/v1/models"),
        (["http://[::1"], "http://[::1 is not an address"),
        (["http://127.0.0.1:9", "--api-key", "sec\nret"], "the API key holds a line break"),
        (["ENGINE", "--mask", "german"], "no mask 'german'; it has: general, french"),
        (["ENGINE", "--model", "x"], "leave --model out"),
    ],
)
def test_targets_that_cannot_be_measured(folder: Path, arguments: list[str], message: str) -> None:
    arguments = [str(folder / "engine") if a == "ENGINE" else a for a in arguments]
    result = CliRunner().invoke(app, ["eval", "--data", str(folder / "text.txt"), *arguments])
    assert result.exit_code != 0
    assert message in str(result.exception)
