"""What a run sends and when: prompts, masks, arrivals, the budget, request bodies."""

from __future__ import annotations

import itertools
import json
import statistics
import threading
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.arrivals import poisson_arrivals
from loadtests.mask_mix import MaskMix
from loadtests.options import LoadSettings, settings_from
from loadtests.prompts import load_prompts, salted, synthetic_prompts
from loadtests.request import CHAT, COMPLETIONS, PreparedRequest, prepare
from loadtests.request_budget import RequestBudget


def test_arrivals_are_poisson_and_follow_from_the_seed() -> None:
    first = list(itertools.islice(poisson_arrivals(20.0, 7), 4000))
    assert first == list(itertools.islice(poisson_arrivals(20.0, 7), 4000))
    assert first != list(itertools.islice(poisson_arrivals(20.0, 8), 4000))
    gaps = [b - a for a, b in itertools.pairwise(first)]
    # Exponential: mean and standard deviation are both 1 / rate.
    assert statistics.fmean(gaps) == pytest.approx(0.05, rel=0.06)
    assert statistics.stdev(gaps) == pytest.approx(0.05, rel=0.06)
    assert min(gaps) >= 0


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_must_be_positive(rate: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        poisson_arrivals(rate, 0)


def test_mask_mixes() -> None:
    assert MaskMix.parse("one:a").choose(0, 5) == "a"
    uniform = MaskMix.parse("uniform:a,b")
    counts = Counter(uniform.choose(1, i) for i in range(4000))
    assert counts["a"] == pytest.approx(2000, rel=0.1)
    zipf = MaskMix.parse("zipf:a,b,c")
    counts = Counter(zipf.choose(1, i) for i in range(6000))
    assert counts["a"] / counts["b"] == pytest.approx(2.0, rel=0.15)
    assert counts["a"] / counts["c"] == pytest.approx(3.0, rel=0.15)
    assert MaskMix.parse("zipf@2:a,b").weights == (1.0, 0.25)
    assert [zipf.choose(3, i) for i in range(50)] == [zipf.choose(3, i) for i in range(50)]


@pytest.mark.parametrize(
    "text", ["a", "one:a,b", "uniform:a,a", "uniform:a,", "zipf@x:a", "zipf@-1:a", "one@2:a", ":a"]
)
def test_bad_mask_mixes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="mask mix"):
        MaskMix.parse(text)


@given(words=st.integers(1, 200), seed=st.integers(0, 2**31))
def test_synthetic_prompts_have_their_length_and_seed(words: int, seed: int) -> None:
    prompts = synthetic_prompts(words, count=3, seed=seed)
    assert prompts == synthetic_prompts(words, count=3, seed=seed)
    assert [len(p.text.split()) for p in prompts] == [words] * 3


def test_salts_differ_by_request_and_not_by_arm() -> None:
    (prompt,) = synthetic_prompts(5, count=1)
    texts = {salted(prompt, 1, i).text for i in range(500)}
    assert len(texts) == 500
    assert len({text.split()[0] for text in texts}) > 50
    assert salted(prompt, 1, 3) == salted(prompt, 1, 3)


def test_prompts_from_files(tmp_path: Path) -> None:
    lines = tmp_path / "p.txt"
    lines.write_text("one\n\ntwo\n")
    assert [(p.id, p.text) for p in load_prompts(lines)] == [("line-1", "one"), ("line-3", "two")]
    jsonl = tmp_path / "p.jsonl"
    jsonl.write_text('{"prompt": "x", "id": 5}\n')
    assert [(p.id, p.text) for p in load_prompts(jsonl)] == [("5", "x")]
    jsonl.write_text('{"prompt": "x", "max_tokens": 9}\n')
    assert load_prompts(jsonl)[0].max_tokens == 9
    for bad in ("", "7\n", '{"prompt": ""}\n', "{\n", '{"prompt": "x", "max_tokens": 0}\n'):
        jsonl.write_text(bad)
        with pytest.raises(ValueError, match=r"p\.jsonl"):
            load_prompts(jsonl)


def test_no_measured_request_starts_before_the_warm_up_has_ended() -> None:
    budget = RequestBudget(warmup=3, requests=4, seconds=None)
    log: list[tuple[str, int]] = []
    lock = threading.Lock()

    def user() -> None:
        while (index := budget.take()) is not None:
            with lock:
                log.append(("start", index))
            time.sleep(0.002)
            with lock:
                log.append(("end", index))
            budget.end(index)

    users = [threading.Thread(target=user) for _ in range(5)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    assert sorted(i for what, i in log if what == "start") == list(range(7))
    first_measured = min(log.index(("start", i)) for i in range(3, 7))
    assert all(log.index(("end", i)) < first_measured for i in range(3))
    assert budget.finished


def test_a_budget_of_seconds_stops_handing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("loadtests.request_budget.time.perf_counter", lambda: now)
    budget = RequestBudget(warmup=1, requests=None, seconds=2.0)
    assert budget.take() == 0
    now = 50.0
    budget.end(0)
    assert budget.take() == 1
    now = 51.9
    assert budget.take() == 2
    now = 52.0
    assert budget.take() is None
    assert not budget.finished
    budget.end(1)
    budget.end(2)
    assert budget.finished


def _options(**changed: Any) -> Namespace:
    fields: dict[str, Any] = {
        "prompts": None,
        "mask_prompts": [],
        "prompt_words": 4,
        "prompt_tokens": None,
        "trace": None,
        "trace_speed": 1.0,
        "trace_lengths": 1.0,
        "base_model": "m",
        "mask_mix": None,
        "api_key": None,
        "max_tokens": 8,
        "temperature": 0.0,
        "salt": "prompt",
        "seed": 0,
        "requests": 4,
        "seconds": None,
        "warmup": 0,
        "rate": None,
        "request_timeout": 5.0,
        "samples": None,
        "summary": None,
        "max_failure_share": 0.0,
        "slo": [],
        "num_users": None,
        "expect_workers": 1,
    }
    return Namespace(**(fields | changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_tokens": 0}, "--max-tokens 0"),
        ({"warmup": -1}, "--warmup -1"),
        ({"requests": 0}, "--requests 0"),
        ({"rate": -2.0}, "--rate -2"),
        ({"rate": 1.0, "num_users": 3}, "instead of -u 3"),
        ({"rate": 1.0, "trace": "t.csv"}, "both say when"),
        ({"prompt_tokens": 0}, "--prompt-tokens 0"),
        ({"prompt_tokens": 9, "prompts": "p.txt"}, "no file of prompts besides"),
        ({"trace": "t.csv", "prompts": "p.txt"}, "give no other"),
        ({"mask_prompts": ["python"]}, "give MASK=FILE"),
        ({"rate": 1.0, "requests": None}, "needs an end"),
        ({"max_failure_share": 2.0}, "--max-failure-share 2"),
        ({"mask_mix": "all"}, "mask mix"),
        ({"slo": ["fast"]}, "objective"),
        ({"prompt_words": 0}, "0 words"),
    ],
)
def test_bad_options_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_from(_options(**changed))


def _prepare(settings: LoadSettings, endpoint: str, index: int) -> PreparedRequest:
    return prepare(settings, settings.source(None), "m", endpoint, index, "run")


def _body(settings: LoadSettings, endpoint: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(_prepare(settings, endpoint, 3).body)
    return body


def test_requests_fix_their_output_length() -> None:
    body = _body(settings_from(_options()), COMPLETIONS)
    assert body["ignore_eos"] is True
    assert body["max_tokens"] == 8
    assert body["stream_options"] == {"include_usage": True}
    chat = _body(settings_from(_options()), CHAT)
    assert chat["max_completion_tokens"] == 8
    assert chat["messages"][0]["role"] == "user"


def test_masks_are_asked_for_by_model_name() -> None:
    settings = settings_from(_options(mask_mix="one:french"))
    request = _prepare(settings, COMPLETIONS, 0)
    assert request.model == json.loads(request.body)["model"] == "m:french"
    assert request.mask == "french"


@pytest.mark.parametrize(
    ("salt", "field", "words"),
    [("prompt", False, 10), ("cache_salt", True, 4), ("both", True, 10), ("none", False, 4)],
)
def test_salts_go_where_they_were_asked_for(salt: str, field: bool, words: int) -> None:
    body = _body(settings_from(_options(salt=salt)), COMPLETIONS)
    assert ("cache_salt" in body) == field
    assert len(body["prompt"].split()) == words


def test_api_keys_are_sent_as_bearer_token() -> None:
    settings = settings_from(_options(api_key="secret"))
    headers = _prepare(settings, COMPLETIONS, 0).headers
    assert headers["Authorization"] == "Bearer secret"
    assert headers["X-Request-Id"] == "run-0"


def test_prompts_of_a_mask_go_to_its_requests(tmp_path: Path) -> None:
    (tmp_path / "code.txt").write_text("def f():\n")
    (tmp_path / "other.txt").write_text("some words\n")
    options = _options(
        prompts=str(tmp_path / "other.txt"),
        mask_prompts=[f"code={tmp_path / 'code.txt'}"],
        mask_mix="uniform:code,text",
        salt="none",
    )
    settings = settings_from(options)
    asked = [_prepare(settings, COMPLETIONS, index) for index in range(30)]
    texts = {request.mask: json.loads(request.body)["prompt"] for request in asked}
    assert texts == {"code": "def f():", "text": "some words"}


def test_a_prompt_may_have_a_length_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "x", "max_tokens": 3}\n{"prompt": "y"}\n')
    settings = settings_from(_options(prompts=str(path)))
    assert [_prepare(settings, COMPLETIONS, i).max_tokens for i in (0, 1)] == [3, 8]
    assert _body(settings, COMPLETIONS)["max_tokens"] == 8
