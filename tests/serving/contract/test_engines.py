"""What every engine must do behind the server."""

from __future__ import annotations

import json
import math
import re
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from openai.types import Completion

from engines.registry import open_engine
from tests.serving.contract.conftest import ADMIN_KEY, Served

PROMPT = "The river carried the timber"
GREEDY = {"model": "tiny-llama", "prompt": PROMPT, "temperature": 0, "max_tokens": 12}
IGNORE_EOS = {"ignore_eos": True}


def complete(served: Served, **fields: object) -> Completion:
    extra = {**IGNORE_EOS, **fields.pop("extra_body", {})}
    return served.client.completions.create(**{**GREEDY, **fields}, extra_body=extra)


def text_of(served: Served, **fields: object) -> str:
    return complete(served, **fields).choices[0].text


def metric(served: Served, name: str) -> float:
    lines = httpx.get(f"{served.server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"twofour:{name}"))


def test_cards(served: Served) -> None:
    cards = {card.id: card.model_extra for card in served.client.models.list()}
    assert set(cards) >= {"tiny-llama", "tiny-llama:general", "tiny-llama:french"}
    assert cards["tiny-llama:french"]["parent"] == "tiny-llama"
    assert cards["tiny-llama:french"]["mask"]["domain"] == "french"
    digests = {cards[name]["mask"]["digest"] for name in cards}
    assert len(digests) == len(cards) - 1, "the base model's card shows its default mask"


def test_version_and_metrics_say_what_runs(served: Served) -> None:
    version = httpx.get(f"{served.server.url}/version").json()["engine"]
    assert version["kind"] == served.kind
    assert version["isa"]
    assert version["eligible_layers"] == 14
    share = metric(served, "sparse_layer_share")
    assert share == version["sparse_layer_share"]
    if served.kind != "reference":
        assert share == 1.0
        assert version["layout"]
    exposed = httpx.get(f"{served.server.url}/metrics").text
    assert f'isa="{version["isa"]}"' in exposed


def test_greedy_answers_repeat(served: Served) -> None:
    first, second = complete(served), complete(served)
    assert first.choices[0].text == second.choices[0].text
    assert first.usage.completion_tokens == 12
    assert first.choices[0].finish_reason == "length"


def test_a_stream_is_the_whole_answer(served: Served) -> None:
    stream = served.client.completions.create(
        **GREEDY, stream=True, stream_options={"include_usage": True}, extra_body=IGNORE_EOS
    )
    *chunks, last = stream
    assert "".join(chunk.choices[0].text for chunk in chunks) == text_of(served)
    assert last.usage.completion_tokens == 12


def test_masks_give_other_answers_and_their_own_fingerprints(served: Served) -> None:
    base = complete(served)
    general = complete(served, model="tiny-llama:general")
    french = complete(served, model="tiny-llama:french")
    assert base.choices[0].text == general.choices[0].text != french.choices[0].text
    assert base.system_fingerprint == general.system_fingerprint != french.system_fingerprint
    assert text_of(served, extra_body={"mask": "french"}) == french.choices[0].text


def test_requests_together_answer_as_alone(served: Served) -> None:
    asks = [
        {"prompt": prompt, "model": model}
        for prompt in (PROMPT, "Deux hommes", "def add(left", "x")
        for model in ("tiny-llama:general", "tiny-llama:french")
    ]
    alone = [text_of(served, **ask) for ask in asks]
    with ThreadPoolExecutor(len(asks)) as pool:
        together = list(pool.map(lambda ask: text_of(served, **ask), asks))
    assert together == alone


def test_seeds_repeat_and_choices_differ(served: Served) -> None:
    def draw(seed: int) -> list[str]:
        answer = complete(served, temperature=1.5, seed=seed, n=3)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.text for choice in answer.choices]

    first = draw(7)
    assert draw(7) == first
    assert len(set(first)) > 1
    assert draw(8) != first


def test_logprobs_are_those_of_the_greedy_choice(served: Served) -> None:
    shown = complete(served, logprobs=3).choices[0].logprobs
    assert len(shown.tokens) == 12
    for logprob, top in zip(shown.token_logprobs, shown.top_logprobs, strict=True):
        assert logprob == max(top.values())
        assert sum(math.exp(value) for value in top.values()) <= 1 + 1e-6


def test_scoring_agrees_with_generating(served: Served) -> None:
    made = complete(served, logprobs=1).choices[0]
    tokens = httpx.post(f"{served.server.url}/tokenize", json={"prompt": PROMPT}).json()["tokens"]
    whole = complete(served, prompt=PROMPT + made.text, max_tokens=0, echo=True, logprobs=1)
    scored = whole.choices[0]
    assert scored.text == PROMPT + made.text
    if "\ufffd" not in made.text and len(scored.logprobs.tokens) == len(tokens) + 12:
        expected = pytest.approx(made.logprobs.token_logprobs, abs=0.05)
        assert scored.logprobs.token_logprobs[len(tokens) :] == expected
    assert whole.usage.completion_tokens == 0


def test_a_prompt_that_fills_the_context_is_scored(served: Served) -> None:
    prompt = [5 + i % 200 for i in range(512)]
    scored = complete(served, prompt=prompt, max_tokens=0, echo=True, logprobs=0).choices[0]
    assert scored.finish_reason == "length"
    assert len(scored.logprobs.token_logprobs) == 512
    # As the same positions of a prompt that leaves room for an answer.
    shorter = complete(served, prompt=prompt[:-1], max_tokens=1, echo=True, logprobs=0).choices[0]
    expected = pytest.approx(shorter.logprobs.token_logprobs[1:-1], abs=0.05)
    assert scored.logprobs.token_logprobs[1:-1] == expected
    with pytest.raises(openai.BadRequestError) as caught:
        complete(served, prompt=[*prompt, 5], max_tokens=0, echo=True, logprobs=0)
    assert caught.value.code == "context_length_exceeded"


def test_prompt_logprobs(served: Served) -> None:
    answer = complete(served, extra_body={"prompt_logprobs": 2}, max_tokens=1)
    entries = answer.choices[0].model_extra["prompt_logprobs"]
    assert len(entries) == answer.usage.prompt_tokens
    assert entries[0] is None
    assert all(any(value["rank"] == 1 for value in entry.values()) for entry in entries[1:])


def test_stop_strings_are_cut(served: Served) -> None:
    text = text_of(served, max_tokens=30)
    stop = text[5:8]
    answer = complete(served, max_tokens=30, stop=[stop])
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_logit_bias_and_min_tokens(served: Served) -> None:
    tokens = httpx.post(f"{served.server.url}/tokenize", json={"prompt": "q"}).json()["tokens"]
    assert text_of(served, logit_bias={str(tokens[0]): 100}, max_tokens=4) == "qqqq"


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"structured_outputs": {"regex": "[0-9]{3}-[0-9]{2}"}}, r"\d{3}-\d{2}"),
        ({"structured_outputs": {"choice": ["river", "mill"]}}, "river|mill"),
    ],
)
def test_constraints_hold(served: Served, constraint: dict, pattern: str) -> None:
    answer = served.client.chat.completions.create(
        model="tiny-llama",
        messages=[{"role": "user", "content": "Say it"}],
        max_completion_tokens=40,
        seed=1,
        extra_body=constraint,
    )
    assert re.fullmatch(pattern, answer.choices[0].message.content)


def test_json_schemas_hold(served: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    answer = served.client.chat.completions.create(
        model="tiny-llama",
        messages=[{"role": "user", "content": "JSON"}],
        max_completion_tokens=200,
        seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "ab", "schema": schema}},
    )
    assert answer.choices[0].finish_reason == "stop"
    value = json.loads(answer.choices[0].message.content)
    assert set(value) == {"a", "b"}


@pytest.mark.parametrize(
    "constraint",
    [
        {"structured_outputs": {"regex": "["}},
        {"structured_outputs": {"json": {"type": "no such type"}}},
    ],
)
def test_a_broken_constraint_is_a_bad_request(served: Served, constraint: dict) -> None:
    with pytest.raises(openai.BadRequestError):
        complete(served, extra_body=constraint)
    assert text_of(served), "and harms nobody else"


def test_prompts_longer_than_the_context(served: Served) -> None:
    for prompt in ([5] * 512, "x " * 5000):
        with pytest.raises(openai.BadRequestError) as caught:
            complete(served, prompt=prompt)
        assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        complete(served, prompt=[5] * 500, max_tokens=13)
    assert caught.value.code == "context_length_exceeded"
    assert complete(served, prompt=[5] * 500).usage.completion_tokens == 12


def test_a_client_that_leaves_frees_the_engine(served: Served) -> None:
    before = metric(served, "generation_tokens_total")
    stream = served.client.completions.create(
        **{**GREEDY, "max_tokens": 450}, n=64, stream=True, extra_body=IGNORE_EOS
    )
    next(stream)
    stream.close()
    deadline = time.monotonic() + 60
    while metric(served, "num_requests_running") or metric(served, "http_generations_in_flight"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    made = metric(served, "generation_tokens_total") - before
    assert 0 < made < 64 * 450 / 2, "generation must stop when nobody listens"
    assert metric(served, "num_requests_waiting") == 0


def admin(served: Served, route: str, **body: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    return httpx.post(f"{served.server.url}/v1/{route}", json=body, headers=headers, timeout=60)


def test_a_mask_comes_and_goes(served: Served) -> None:
    before = text_of(served)
    loaded = admin(served, "load_mask", mask_name="late", mask_path="late.safetensors")
    assert loaded.status_code == 200, loaded.text
    late = complete(served, model="tiny-llama:late")
    assert late.choices[0].text != before
    assert loaded.json()["digest"][:16] in late.system_fingerprint
    assert text_of(served) == before
    assert admin(served, "unload_mask", mask_name="late").status_code == 200
    with pytest.raises(openai.NotFoundError):
        complete(served, model="tiny-llama:late")


@pytest.mark.parametrize("name", ["foreign", "broken"])
def test_masks_that_do_not_belong_here(served: Served, name: str) -> None:
    answer = admin(served, "load_mask", mask_name=name, mask_path=f"{name}.safetensors")
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_mask"
    assert str(served.mask_root) not in answer.text
    assert f"tiny-llama:{name}" not in {card.id for card in served.client.models.list()}


def test_the_default_mask_stays(served: Served) -> None:
    assert admin(served, "unload_mask", mask_name="general").status_code == 400
    assert text_of(served)


def test_unknown_engine_options_are_named(served: Served) -> None:
    with pytest.raises(ValueError, match="no option 'no_such_thing'; it has: "):
        open_engine(served.directory, no_such_thing=1)
