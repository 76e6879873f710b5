"""Real server processes: disconnects, overload, draining, ports, and the command line."""

from __future__ import annotations

import asyncio
import inspect
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from serving.config import ServerSettings
from tests.serving.conftest import ROOT, ServerProcess, StartFake
from twofour.cli import main
from twofour.commands.serve import serve


def metric(url: str, name: str) -> float:
    for line in httpx.get(f"{url}/metrics", timeout=60).text.splitlines():
        if line.startswith(f"twofour:{name}"):
            return float(line.split()[-1])
    raise AssertionError(f"no metric {name}")


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


def idle(url: str) -> bool:
    names = ("num_requests_running", "http_generations_in_flight", "choices_waiting_first_token")
    return all(metric(url, name) == 0 for name in names)


@pytest.fixture
def client_of():
    clients: list[OpenAI] = []

    def make(server: ServerProcess) -> OpenAI:
        base = f"{server.url}/v1"
        clients.append(OpenAI(base_url=base, api_key="any", max_retries=0, timeout=120))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompt", ["HANG", "SLOW"])
def test_a_client_that_leaves_frees_what_it_held(
    server: ServerProcess, prompt: str, stream: bool
) -> None:
    def aborted() -> float:
        return metric(server.url, 'request_success_total{finished_reason="abort"')

    before = aborted() if "abort" in httpx.get(f"{server.url}/metrics", timeout=60).text else 0
    generated = metric(server.url, "generation_tokens_total")
    body = {"model": "tiny", "prompt": [prompt, prompt], "max_tokens": 200, "stream": stream}
    payload = json.dumps(body).encode()
    port = int(server.url.rsplit(":", 1)[1])
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(payload)}\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + payload)
        running = "num_requests_running"
        wait_for(lambda: metric(server.url, running) == 2, "both prompts run")
    wait_for(lambda: idle(server.url), "the engine is free again")
    assert aborted() == before + 2
    assert metric(server.url, "generation_tokens_total") < generated + 2 * 200


def test_huge_headers_are_refused_unread(server: ServerProcess) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 100_000)
        assert connection.recv(100).startswith(b"HTTP/1.1 431")
    assert httpx.get(f"{server.url}/v1/models").status_code == 200


async def test_more_than_the_waiting_room_holds_gets_429(start_fake: StartFake) -> None:
    server = start_fake(max_waiting=4, max_choices=4)
    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=120
    ) as client:
        hanging = [
            asyncio.create_task(client.completions.create(model="tiny", prompt="HANG", n=n))
            for n in (1, 2)
        ]
        while metric(server.url, "choices_waiting_first_token") != 3:
            await asyncio.sleep(0.02)
        with pytest.raises(openai.RateLimitError) as caught:
            await client.completions.create(model="tiny", prompt=["a", "b"])
        assert int(caught.value.response.headers["retry-after"]) >= 1
        answer = await client.completions.create(model="tiny", prompt="a")
        assert answer.choices[0].text, "one slot is left, and is given back"
        await client.completions.create(model="tiny", prompt="a")
        with pytest.raises(openai.BadRequestError) as never:
            await client.completions.create(model="tiny", prompt=["a", "b", "c"], n=2)
        assert never.value.param == "n"

        together = [
            asyncio.create_task(client.completions.create(model="tiny", prompt="HANG"))
            for _ in range(20)
        ]
        while sum(task.done() for task in together) < 19:
            await asyncio.sleep(0.02)
        refused = [task for task in together if task.done()]
        assert all(isinstance(task.exception(), openai.RateLimitError) for task in refused)
        assert len(refused) == 19, "requests that arrive together must not all pass the check"
        for task in (*hanging, *together):
            task.cancel()
        await asyncio.gather(*hanging, *together, return_exceptions=True)
    wait_for(lambda: idle(server.url), "all slots come back")


def test_a_silent_stream_is_kept_alive(start_fake: StartFake) -> None:
    server = start_fake(keep_alive_interval=0.05)
    body = {"model": "tiny", "prompt": "HANG", "stream": True}
    with (
        httpx.Client() as client,
        client.stream("POST", f"{server.url}/v1/completions", json=body) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        comments = [line for line in (next(lines) for _ in range(4)) if line]
        assert comments == [": keep-alive"] * 2
    wait_for(lambda: idle(server.url), "the request ends with its client")


def test_running_requests_finish_before_the_server_stops(start_fake: StartFake, client_of) -> None:
    server = start_fake()
    client = client_of(server)
    stream = client.completions.create(model="tiny", prompt="SLOW", max_tokens=60, stream=True)
    first = next(stream)
    stopped: list[int] = []
    stopper = threading.Thread(target=lambda: stopped.append(server.stop()))
    stopper.start()
    wait_for(lambda: httpx.get(f"{server.url}/readyz", timeout=60).status_code == 503, "unready")
    assert httpx.get(f"{server.url}/livez").status_code == 200
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model="tiny", prompt="new")
    assert caught.value.code == "shutting_down"
    text = first.choices[0].text + "".join(chunk.choices[0].text for chunk in stream)
    assert len(text) == 60, "the running stream is complete"
    stopper.join()
    assert stopped == [0]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")


async def test_what_outlasts_the_timeout_ends_with_an_error(start_fake: StartFake) -> None:
    server = start_fake(shutdown_timeout=0.3)
    async with AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=120
    ) as client:
        ask = {"model": "tiny", "prompt": "SLOW", "max_tokens": 250}
        stream = await client.completions.create(**ask, stream=True)
        await anext(stream)
        whole = asyncio.create_task(client.completions.create(**ask))
        while metric(server.url, "num_requests_running") != 2:
            await asyncio.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.InternalServerError) as refused:
            await whole
        with pytest.raises(openai.APIError) as broken:
            await _read(stream)
    assert refused.value.code == broken.value.code == "shutting_down"
    server.process.communicate(timeout=60)
    assert server.process.returncode == 0


async def _read(stream) -> None:
    async for _ in stream:
        pass


def test_a_second_signal_skips_the_wait(start_fake: StartFake) -> None:
    server = start_fake(shutdown_timeout=600)
    body = {"model": "tiny", "prompt": "HANG", "stream": True}
    caller = threading.Thread(
        target=lambda: httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    )
    caller.start()
    wait_for(lambda: metric(server.url, "num_requests_running") == 1, "the request runs")
    server.process.send_signal(signal.SIGTERM)
    wait_for(lambda: httpx.get(f"{server.url}/readyz", timeout=60).status_code == 503, "draining")
    assert server.stop(signal.SIGINT) == 0
    caller.join()


def test_a_port_in_use_is_one_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "twofour.cli", "serve", str(tmp_path), "--port", str(port)]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["DIR/missing"], "no such folder"),
        (["DIR", "--port", "0"], "engine.json"),
        (["DIR", "--port", "99999"], "--port"),
        (["DIR", "--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["DIR", "--api-key", ""], "--api-key"),
        (["DIR", "--mask-root", "/"], "together"),
        (["DIR", "--engine-option", "threads"], "NAME=VALUE"),
    ],
)
def test_mistakes_on_the_command_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    line = [argument.replace("DIR", str(tmp_path)) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["twofour", "serve", *line])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert message in capsys.readouterr().err


def test_serve_offers_every_setting() -> None:
    options = set(inspect.signature(serve).parameters) - {"engine_option"} | {"engine_options"}
    assert options == set(ServerSettings.model_fields)
