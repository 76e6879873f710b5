"""lm-eval, with the server's own tokenizer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.clients.answers import CHAT, COMPLETIONS
from tests.clients.conftest import MODEL, Client, RunScenario

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]
CLIENT = Client("lm-eval", "lm-eval", "lm_eval_.py")

QUESTIONS = [
    {"question": "The capital of France is", "choices": ["Paris", "Tuesday"], "answer": 0},
    {"question": "Two and two are", "choices": ["orange", "four"], "answer": 1},
]


@pytest.fixture
def questions(tmp_path: Path) -> str:
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, QUESTIONS)))
    return str(path)


def test_completions_and_remote_tokenizer(run: RunScenario, questions: str) -> None:
    found = run("completions", questions)
    asked = {"prompt": "The river Rhine", "add_special_tokens": False}
    ids = httpx.post(f"{found.server}/tokenize", json=asked, timeout=60).json()["tokens"]
    assert found.said["encoded"] == ids
    choices = found.said["choices"]
    assert choices["scores"]["acc,none"] in (0.0, 0.5, 1.0)
    for prompts, answers in zip(choices["prompts"], choices["samples"], strict=True):
        for (question, choice), [[likelihood, _]] in zip(prompts, answers, strict=True):
            expected = log_likelihood(found.server, question, choice)
            assert math.isclose(likelihood, expected, abs_tol=1e-3)
    assert all(text for [[text]] in found.said["sayings"]["samples"])
    assert {one.path for one in found.answered} == {COMPLETIONS}


def log_likelihood(server: str, question: str, choice: str) -> float:
    """Of `choice` after `question`, from the log-probs of an echoed prompt."""
    body = {"model": MODEL, "prompt": question + choice, "max_tokens": 0, "echo": True}
    asked = {**body, "logprobs": 1, "temperature": 0}
    answer = httpx.post(f"{server}/v1/completions", json=asked, timeout=60).json()
    told: Any = answer["choices"][0]["logprobs"]
    pairs = zip(told["text_offset"], told["token_logprobs"], strict=True)
    return sum(logprob for offset, logprob in pairs if offset >= len(question))


def test_chat(run: RunScenario, questions: str) -> None:
    found = run("chat", questions)
    assert len(found.said["samples"]) == len(QUESTIONS)
    assert {one.path for one in found.answered} == {CHAT}
