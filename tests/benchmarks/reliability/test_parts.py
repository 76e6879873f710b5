"""What counts as answered, refused and lost; and what a row says of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.common.server_process import Server
from benchmarks.reliability.client import Completion, Exchange, Reply, ask
from benchmarks.reliability.page import reliability_page
from benchmarks.reliability.row import FLAT_MIB, Tally
from benchmarks.reliability.site import Running

STREAMED = Completion("p", 2)
WHOLE = Completion("p", 2, stream=False)


def error(code: str, keys: str = "message type param code") -> dict[str, Any]:
    return {"error": dict.fromkeys(keys.split(), "x") | {"code": code}}


def stream(*events: dict[str, Any] | str, complete: bool = True) -> Reply:
    lines = [e if isinstance(e, str) else json.dumps(e) for e in events]
    return Reply(200, "".join(f"data: {line}\n\n" for line in lines).encode(), complete)


def chunk(text: str) -> dict[str, Any]:
    return {"system_fingerprint": "f", "choices": [{"text": text}], "usage": None}


def usage(tokens: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"completion_tokens": tokens}}


def whole(tokens: int, status: int = 200) -> Reply:
    body = {"system_fingerprint": "f", "choices": [{"text": "ab"}], **usage(tokens)}
    return Reply(status, json.dumps(body | {"choices": [{"text": "ab"}]}).encode(), True)


IN_FULL = stream(chunk("a"), chunk("b"), usage(2), "[DONE]")


@pytest.mark.parametrize(
    ("completion", "reply", "verdict"),
    [
        (STREAMED, IN_FULL, "answered"),
        (STREAMED, stream(chunk("a"), usage(1), "[DONE]"), "lost"),
        (STREAMED, stream(chunk("a"), chunk("b"), usage(2)), "lost"),
        (STREAMED, stream(chunk("a"), chunk("b"), usage(2), "[DONE]", complete=False), "lost"),
        (STREAMED, stream(chunk("a"), chunk("b"), "[DONE]"), "lost"),
        (STREAMED, stream(chunk("a"), error("shutting_down")), "refused"),
        (STREAMED, stream(chunk("a"), error("x"), complete=False), "lost"),
        (STREAMED, Reply(), "lost"),
        (WHOLE, whole(2), "answered"),
        (WHOLE, whole(1), "lost"),
        (WHOLE, whole(2, status=500), "lost"),
        (WHOLE, Reply(429, json.dumps(error("overloaded")).encode(), True), "refused"),
        (WHOLE, Reply(429, json.dumps(error("x", "code")).encode(), True), "lost"),
        (WHOLE, Reply(502, b"<html>", True), "lost"),
    ],
)
def test_verdicts(completion: Completion, reply: Reply, verdict: str) -> None:
    assert completion.verdict(reply) == verdict


def test_text_and_fingerprint() -> None:
    assert STREAMED.text(IN_FULL) == WHOLE.text(whole(2)) == "ab"
    assert STREAMED.fingerprint(IN_FULL) == WHOLE.fingerprint(whole(2)) == "f"


@pytest.fixture
def running() -> Running:
    return Running(Server.__new__(Server), {STREAMED: "ab", Completion("q", 2): "other"})


def test_what_was_not_to_be_is_a_problem(running: Running) -> None:
    tally = Tally("any")
    overloaded = Reply(429, json.dumps(error("overloaded")).encode(), True, "3")
    assert tally.take(running, STREAMED, IN_FULL) == "answered"
    assert tally.take(running, STREAMED, overloaded, "overloaded") == "refused"
    tally.expect(True, "not said")
    assert tally.problems == []
    assert tally.take(running, Completion("q", 2), IN_FULL) == "lost"
    assert tally.take(running, STREAMED, overloaded) == "lost"
    assert tally.take(running, STREAMED, Reply()) == "lost"
    tally.expect(False, "said")
    row = tally.row()
    assert [row[name] for name in ("sent", "answered", "refused", "lost")] == [7, 1, 2, 4]
    assert len(row["problems"]) == 4


def test_a_refusal_says_when_to_come_again(running: Running) -> None:
    tally = Tally("any")
    reply = Reply(429, json.dumps(error("overloaded")).encode(), True)
    tally.take(running, STREAMED, reply, "overloaded")
    assert tally.problems == ["a refusal without Retry-After"]


def test_memory_that_grows_after_the_warm_up_is_a_problem() -> None:
    flat = Tally("any", rss_mib=[50.0, 100.0, 104.0 + FLAT_MIB], warm_up=2)
    assert flat.row()["problems"] == []
    grown = Tally("any", rss_mib=[100.0, 106.0 + FLAT_MIB])
    assert "memory grew from 100.0" in grown.row()["problems"][0]


def test_the_page_shows_what_went_wrong() -> None:
    tally = Tally("a fault", problems=["it broke"], broken=3)
    result = {
        "model": "tiny",
        "rows": [tally.row()],
        "command": "twofour bench reliability",
        "date": "2026-01-01",
        "machine": {"cores": 1, "cpu": "any", "memory_gib": 1, "system": "any"},
        "machine_class": "avx2",
        "versions": {},
        "data_digests": {},
    }
    page = reliability_page(result)
    assert "- a fault: it broke" in page
    assert "SIGKILL cut 3 streams" in page


async def test_a_server_that_is_not_there_gives_an_empty_reply() -> None:
    url = "http://127.0.0.1:9"
    assert await ask(url, STREAMED) == Reply()
    with pytest.raises(OSError, match="Connect"):
        await Exchange.open(url)
