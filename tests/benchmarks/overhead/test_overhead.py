"""The overhead benchmark on a tiny model, and the client that it trusts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.engine.arms import engine_command
from benchmarks.engine.speed import SpeedPlan
from benchmarks.overhead.measure import OverheadPlan, measure_overhead
from benchmarks.overhead.page import overhead_page
from benchmarks.overhead.stream_client import StreamConnection, StreamError
from engines.cpu.build import build
from engines.directory.build import BuildRequest
from engines.directory.decoder_config import read_decoder_config
from tests.engines.conftest import random_mask
from tests.tiny_model import make_tiny_llama

FIGURES = {"concurrency", "engine_tokens_per_s", "http_tokens_per_s", "added_ttft_ms"}


def test_both_arms_answer_the_same_waves(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model")
    mask = random_mask(model, tmp_path / "mask.safetensors")
    directory = tmp_path / "engine"
    build(BuildRequest(model, "tiny", {"general": mask}, directory))
    speed = SpeedPlan(((8, 12),), (1, 3), repeats=2, threads=1)
    vocabulary = read_decoder_config(directory).vocab
    plan = OverheadPlan(8, 12, (1, 3), repeats=2, threads=1, vocabulary=vocabulary)
    said: list[str] = []
    options = ("--engine-option", "prefix_cache=false")
    command = engine_command(directory, speed)
    log = tmp_path / "server.log"
    rows = list(measure_overhead(command, directory, options, plan, log, said.append))
    assert said == ["1 streams", "3 streams"]
    assert [row["concurrency"] for row in rows] == [1, 3]
    for row in rows:
        assert row.keys() >= FIGURES
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert min(row["engine_tokens_per_s"], row["http_tokens_per_s"]) > 0
        # Processor times come in ticks, of which so few tokens may take none.
        assert min(row["engine_cpu_ms"], row["server_cpu_ms"], row["client_cpu_ms"]) >= 0
    result = {
        "model": "tiny",
        "rows": rows,
        "command": "twofour bench overhead",
        "date": "2026-01-01",
        "machine": {"cores": 1, "cpu": "any", "memory_gib": 1, "system": "any"},
        "machine_class": "avx2",
        "versions": {},
        "data_digests": {},
    }
    assert "tiny, 8/12 tokens, 1 threads" in overhead_page(result)


def chunk(reason: str | None) -> str:
    return "data: " + json.dumps({"choices": [{"text": "a", "finish_reason": reason}]})


def answer(*events: str, status: int = 200, end: bytes = b"0\r\n\r\n") -> bytes:
    body = "".join(f"{event}\n\n" for event in events).encode()
    head = f"HTTP/1.1 {status} X\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    return head + f"{len(body):x}\r\n".encode() + body + b"\r\n" + end


def received(data: bytes) -> StreamConnection:
    connection = StreamConnection()
    connection.data_received(data)
    return connection


DONE = "data: [DONE]"


def test_an_answer_in_full_passes() -> None:
    events = (chunk(None), ": keep-alive", chunk("length"), DONE)
    received(answer(*events)).check(2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (answer(chunk("length"), DONE), "1 events came for 2 tokens"),
        (answer(chunk(None), chunk("stop"), DONE), "events came"),
        (answer(chunk(None), chunk("length")), "the stream ended with"),
        (answer(chunk(None), chunk("length"), DONE, end=b""), "mid-answer"),
        (answer("no", status=503), "answered 503: no"),
    ],
)
def test_any_other_answer_does_not(data: bytes, message: str) -> None:
    with pytest.raises(StreamError, match=message):
        received(data).check(2)


async def test_events_are_counted_however_they_are_cut() -> None:
    class Transport:
        def write(self, data: Any) -> None:
            self.sent = data

    data = answer(chunk(None), chunk(None), chunk("length"), DONE)
    for size in (1, 7, 50, len(data)):
        connection = StreamConnection()
        connection._transport = Transport()  # type: ignore[assignment]
        found = 0
        events = connection.events(b"request")
        pieces = [data[i : i + size] for i in range(0, len(data), size)]
        for piece in pieces[:-1]:
            connection.data_received(piece)
            found += connection._new_events()
        connection.data_received(pieces[-1])
        async for count in events:
            found += count
        assert found == 3
