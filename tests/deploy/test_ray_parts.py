"""What of deploy/ray needs no Ray: calling an application, holding masks, reading their names."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from deploy.ray.asgi_call import HttpCall, HttpStart, answer
from deploy.ray.held_masks import hold, is_there
from deploy.ray.named_mask import named_mask

CALL = HttpCall("POST", "/v1/completions", b"a=b", [(b"x", b"y")], b"body")


@pytest.mark.parametrize(
    ("body", "mask"),
    [
        (b'{"model": "base:french"}', "french"),
        (b'{"model": "base"}', ""),
        (b'{"model": "a:b:c"}', "c"),
        (b'{"model": "base", "mask": "law"}', "law"),
        (b'{"model": "base:french", "mask": "law"}', "law"),
        (b'{"model": 5, "mask": null}', ""),
        (b'["base:french"]', ""),
        (b"", ""),
        (b"\xff{", ""),
        (b"[" * 100_000, ""),
    ],
)
def test_the_mask_that_a_request_names(body: bytes, mask: str) -> None:
    assert named_mask(body) == mask


async def test_an_answer_is_streamed() -> None:
    gate = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (scope["method"], scope["path"], scope["query_string"]) == (
            "POST", "/v1/completions", b"a=b",
        )  # fmt: skip
        assert (await receive())["body"] == b"body"
        await send({"type": "http.response.start", "status": 201, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await gate.wait()
        await send({"type": "http.response.body", "body": b"two", "more_body": False})

    pieces = answer(app, CALL)
    assert await anext(pieces) == HttpStart(201, [(b"a", b"b")])
    assert await anext(pieces) == b"one"  # before the application goes on
    gate.set()
    assert [piece async for piece in pieces] == [b"two"]


async def test_hanging_up_reaches_the_application() -> None:
    heard: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            heard.append((await receive())["type"])
        finally:
            heard.append("ended")

    pieces: Any = answer(app, CALL)
    await anext(pieces)
    await pieces.aclose()
    assert heard[-1] == "ended"


async def test_what_an_application_raises_is_raised() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await anext(answer(app, CALL))


class FakeEngine:
    """Remembers what is loaded."""

    def __init__(self, *brought: str) -> None:
        self.masks = list(brought)

    def describe(self) -> Any:
        return SimpleNamespace(masks=[SimpleNamespace(name=name) for name in self.masks])

    async def load_mask(self, name: str, file: Path) -> None:
        assert file.is_file()
        self.masks.append(name)

    async def unload_mask(self, name: str) -> None:
        self.masks.remove(name)


async def test_a_mask_in_use_stays_until_its_requests_have_ended(tmp_path: Path) -> None:
    (tmp_path / "law.safetensors").touch()
    engine: Any = FakeEngine("general")
    held = await hold(engine, tmp_path, "law")
    assert engine.masks == ["general", "law"]
    async with held.used():
        async with held.used():
            evicted = asyncio.create_task(getattr(held, "__del__")())  # noqa: B009 (as Ray does)
        await asyncio.sleep(0)
        assert "law" in engine.masks
    await evicted
    assert engine.masks == ["general"]
    await (await hold(engine, tmp_path, "general")).release()
    assert engine.masks == ["general"]  # what the directory brought is not unloaded


@pytest.mark.parametrize("name", ["../law", "law/../law", "", ".law", "a" * 200, "missing"])
def test_names_that_are_no_masks_take_no_place(tmp_path: Path, name: str) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "law.safetensors").touch()
    (tmp_path / "masks" / "law.safetensors").touch()
    engine: Any = FakeEngine("general")
    assert not is_there(engine, tmp_path / "masks", name)
    assert is_there(engine, tmp_path / "masks", "law")
    assert is_there(engine, None, "general")
    assert not is_there(engine, None, "law")
