"""What browsers ask for: pages of other origins, and compressed answers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import httpx
import pytest

from tests.serving.conftest import App, open_app
from tests.serving.requests import CHAT

PAGE = "https://pages.example:8443"
ASKING = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, x-stainless-lang",
}


async def test_no_page_of_another_origin_may_call_by_default(app: App) -> None:
    answer = await app.client.get("/v1/models", headers={"origin": PAGE})
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers
    asked = await app.client.options("/v1/models", headers={"origin": PAGE, **ASKING})
    assert asked.status_code == 405
    assert "access-control-allow-origin" not in asked.headers


@pytest.mark.parametrize(("allowed", "shown"), [((PAGE,), PAGE), (("*",), "*")])
async def test_pages_that_may(tmp_path: Path, allowed: tuple[str, ...], shown: str) -> None:
    async with open_app(tmp_path, allowed_origins=allowed, api_key=("key",)) as app:
        headers = {"origin": PAGE}
        asked = await app.client.options("/v1/chat/completions", headers={**headers, **ASKING})
        assert asked.status_code == 200, "a browser asks without the key"
        assert asked.headers["access-control-allow-origin"] == shown
        assert "authorization" in asked.headers["access-control-allow-headers"].lower()
        refused = await app.client.post("/v1/chat/completions", json=CHAT, headers=headers)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == shown, "so that a page sees why"
        headers["authorization"] = "Bearer key"
        answer = await app.client.post("/v1/chat/completions", json=CHAT, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == shown
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(("allowed", "shown"), [((PAGE,), PAGE), (("*",), "*"), ((), None)])
async def test_a_page_sees_a_failure_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: tuple[str, ...], shown: str | None
) -> None:
    async with open_app(tmp_path, allowed_origins=allowed) as app:
        monkeypatch.delattr(app.app.state.service, "names")
        answer = await app.client.get("/v1/models", headers={"origin": PAGE})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert answer.headers["x-request-id"]
    assert answer.headers.get("access-control-allow-origin") == shown


async def test_pages_that_may_not(tmp_path: Path) -> None:
    async with open_app(tmp_path, allowed_origins=(PAGE,)) as app:
        headers = {"origin": "https://other.example", **ASKING}
        asked = await app.client.options("/v1/models", headers=headers)
        assert asked.status_code == 403
        assert asked.json()["error"]["code"] == "permission_denied"
        assert "allowed_origins" in asked.json()["error"]["message"]
        assert "access-control-allow-origin" not in asked.headers
        assert asked.headers["x-request-id"]


async def raw(app: App, path: str, encoding: str, **body: object) -> tuple[httpx.Response, bytes]:
    """An answer and its bytes as they were sent."""
    headers = {"accept-encoding": encoding}
    async with app.client.stream("POST", path, json=body, headers=headers) as answer:
        return answer, b"".join([part async for part in answer.aiter_raw()])


async def test_answers_are_compressed_where_that_is_asked_for(app: App) -> None:
    text = "the lamp " * 500
    plain, body = await raw(app, "/tokenize", "identity", prompt=text)
    assert "content-encoding" not in plain.headers
    packed, small = await raw(app, "/tokenize", "gzip, deflate", prompt=text)
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["content-length"] == str(len(small))
    assert gzip.decompress(small) == body
    assert len(small) < len(body) / 3
    assert json.loads(body)["count"] == len(text)


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip;q=0", False),
        ("gzip; Q=0.000, deflate", False),
        ("deflate, gzip ; q = 0", False),
        ("*, gzip;q=0", False),
        ("gzip;q=0.001", True),
        ("br;q=0, gzip", True),
        ("GZIP;q=0, gzip;q=1", False),
        ("xgzip", False),
        ("", False),
    ],
)
async def test_a_weight_of_zero_refuses_gzip(app: App, accepted: str, packed: bool) -> None:
    answer, _ = await raw(app, "/tokenize", accepted, prompt="the lamp " * 500)
    assert (answer.headers.get("content-encoding") == "gzip") is packed
    assert answer.headers["vary"] == "Accept-Encoding"


async def test_small_answers_and_streams_are_not(app: App) -> None:
    answer, _ = await raw(app, "/tokenize", "gzip", prompt="a")
    assert "content-encoding" not in answer.headers
    body = {**CHAT, "max_tokens": 200, "stream": True}
    answer, sent = await raw(app, "/v1/chat/completions", "gzip", **body)
    assert "content-encoding" not in answer.headers
    assert len(sent) > 10_000
    assert sent.endswith(b"data: [DONE]\n\n")
