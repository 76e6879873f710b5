"""Connections on which nothing moves are closed; a full table of descriptors is one log line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h11
import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from serving.listener import AcceptErrors
from serving.protocol import MAX_HEADER_BYTES, ConnectionTimeouts, TimedProtocol
from tests.serving.conftest import ServerProcess, StartFake, open_app

SHORT = 1.0
LONG = 600.0
PAUSE = 0.05


def start(start_fake: StartFake, **short: str) -> ServerProcess:
    """A server of which one timeout is short."""
    timeouts = {"header_timeout": LONG, "body_timeout": LONG, "idle_timeout": LONG}
    return start_fake(**{**timeouts, **dict.fromkeys(short, SHORT)})


@pytest.fixture
def connect() -> Iterator[Callable[[ServerProcess], socket.socket]]:
    opened: list[socket.socket] = []

    def connect(server: ServerProcess) -> socket.socket:
        port = int(server.url.rsplit(":", 1)[1])
        opened.append(socket.create_connection(("127.0.0.1", port), timeout=60))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


Connect = Callable[[ServerProcess], socket.socket]


def read_to_end(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:  # closed while something from here was unread
        pass
    return received


def read_until(connection: socket.socket, end: bytes) -> bytes:
    """What comes, up to bytes that are known to end an answer."""
    received = b""
    while not received.endswith(end):
        data = connection.recv(65536)
        assert data, received
        received += data
    return received


def trickle(connection: socket.socket, data: bytes) -> bytes:
    """Send byte by byte until the server answers or closes."""
    connection.settimeout(PAUSE)
    for place in range(len(data)):
        try:
            connection.sendall(data[place : place + 1])
            return connection.recv(1, socket.MSG_PEEK) and _rest(connection)
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            return b""
    raise AssertionError("the server took it all")


def _rest(connection: socket.socket) -> bytes:
    connection.settimeout(60)
    return read_to_end(connection)


def error_of(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 "), answer
    assert b"x-request-id:" in head.lower()
    assert b"connection: close" in head.lower()
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "request_timeout"
    return error


def head(path: str, length: int) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json"]
    return "\r\n".join([*lines, f"content-length: {length}", "", ""]).encode()


def test_headers_that_do_not_come(start_fake: StartFake, connect: Connect) -> None:
    server = start(start_fake, header_timeout="short")
    assert read_to_end(connect(server)) == b"", "a silent connection is closed without a word"
    begun = connect(server)
    begun.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nx-slow: ")
    error = error_of(read_to_end(begun))
    assert error["message"] == f"the headers did not come within {SHORT:g} s"
    trickled = trickle(connect(server), b"GET /health HTTP/1.1\r\nx: " + b"y" * 10_000)
    assert not trickled or error_of(trickled)
    # What a client sends after an answer is a request too, and uvicorn forgets about it.
    second = connect(server)
    second.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    assert read_until(second, b'"ok"}').startswith(b"HTTP/1.1 200")
    second.sendall(b"G")
    error_of(read_to_end(second))
    # Two requests at once, of which the second is not whole.
    both = connect(server)
    both.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /hea")
    answer = read_to_end(both)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" in answer
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_bodies_that_do_not_come(start_fake: StartFake, connect: Connect) -> None:
    server = start(start_fake, body_timeout="short")
    for sent in (b"", b'{"model": '):
        connection = connect(server)
        connection.sendall(head("/v1/completions", 100) + sent)
        assert (
            "the request body did not come within" in error_of(read_to_end(connection))["message"]
        )
    trickled = connect(server)
    trickled.sendall(head("/v1/completions", 10_000))
    answer = trickle(trickled, b" " * 10_000)
    assert not answer or error_of(answer)
    # A body that nobody reads holds the connection no longer than one that is read.
    unread = connect(server)
    unread.sendall(head("/nowhere", 10_000))
    assert read_until(unread, b"}}").startswith(b"HTTP/1.1 404")
    assert trickle(unread, b" " * 10_000) == b""


def test_idle_connections(start_fake: StartFake, connect: Connect) -> None:
    server = start(start_fake, idle_timeout="short")
    connection = connect(server)
    connection.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    assert read_to_end(connection).startswith(b"HTTP/1.1 200")


def test_work_is_not_idle(start_fake: StartFake, connect: Connect) -> None:
    """An answer may take longer than all timeouts together."""
    timeouts = ("header_timeout", "body_timeout", "idle_timeout")
    server = start(start_fake, **dict.fromkeys(timeouts, "short"))
    for stream in (False, True):
        # 125 tokens, 20 ms apart.
        body = {"model": "tiny", "prompt": "SLOW", "max_tokens": 125, "stream": stream}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        assert answer.status_code == 200
        assert stream == ("[DONE]" in answer.text)
    # Whoever sends body and headers in time is served, piece by piece or not.
    connection = connect(server)
    connection.sendall(b"GET /health HTT")
    connection.sendall(b"P/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert read_to_end(connection).startswith(b"HTTP/1.1 200")


def test_what_is_no_http_gets_an_error_of_the_usual_form(
    server: ServerProcess, connect: Connect
) -> None:
    connection = connect(server)
    connection.sendall(b"\x16\x03\x01 is no HTTP\r\n\r\n")
    answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


def request_of(size: int, headers: int) -> bytes:
    """A request whose head takes so many bytes, in so many headers beside the usual ones.

    Of what answers after other tests have let this server's engine die.
    """
    start = b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    room, more = divmod(size - len(start) - 2, headers)
    names = [b"x%d" % number for number in range(headers)]
    lengths = [room + (more if number == 0 else 0) for number in range(headers)]
    lines = [
        b"%b:%b\r\n" % (n, b"y" * (k - len(n) - 3)) for n, k in zip(names, lengths, strict=True)
    ]
    return b"".join([start, *lines, b"\r\n"])


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("headers", [1, 90])
@pytest.mark.parametrize("size", [MAX_HEADER_BYTES, MAX_HEADER_BYTES + 1, 33_000, 60_000, 100_000])
def test_headers_are_limited_however_they_come(
    server: ServerProcess, connect: Connect, size: int, headers: int, pieces: int
) -> None:
    request = request_of(size, headers)
    assert len(request) == size
    connection = connect(server)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    step = -(-size // pieces)
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        for place in range(0, size, step):
            connection.sendall(request[place : place + step])
            time.sleep(0.002 if pieces > 1 else 0)
    answer = read_to_end(connection)
    if size <= MAX_HEADER_BYTES:
        assert answer.startswith(b"HTTP/1.1 200")
        return
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 "), answer
    assert b"connection: close" in head.lower()
    error = json.loads(body)["error"]
    assert error["code"] == "headers_too_large"
    assert str(MAX_HEADER_BYTES) in error["message"]


def test_space_around_a_value_and_a_long_path_are_headers_too(
    server: ServerProcess, connect: Connect
) -> None:
    much = b" " * MAX_HEADER_BYTES
    for request in (
        b"GET /health HTTP/1.1\r\nhost: x\r\nx:" + much + b"y\r\n\r\n",
        b"GET /health?" + much.replace(b" ", b"a") + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    ):
        connection = connect(server)
        connection.sendall(request)
        assert read_to_end(connection).startswith(b"HTTP/1.1 431 ")


def test_a_body_in_the_same_write_and_a_second_request_do_not_count(
    server: ServerProcess, connect: Connect
) -> None:
    body = json.dumps({"prompt": "a" * 60_000}).encode()
    connection = connect(server)
    connection.sendall(head("/tokenize", len(body)) + body + request_of(MAX_HEADER_BYTES, 1))
    answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1 200") == 2


class Transport(asyncio.Transport):
    """Holds what is written to it; its client reads a little whenever somebody looks."""

    def __init__(self) -> None:
        super().__init__()
        self.unsent = 0
        self.reads = 0
        self.closing = self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.unsent += len(data)

    def get_write_buffer_size(self) -> int:
        self.unsent -= self.reads
        return self.unsent

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.aborted = True


def protocol_on(transport: Transport, idle: float) -> TimedProtocol:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("no request comes")

    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None)
    timeouts = ConnectionTimeouts(LONG, LONG, idle)
    protocol = TimedProtocol(config, ServerState(), {}, timeouts=timeouts)
    protocol.connection_made(transport)
    return protocol


async def test_a_client_that_reads_nothing_is_left() -> None:
    transport = Transport()
    protocol = protocol_on(transport, 0.01)
    transport.unsent, transport.reads = 1000, 100
    protocol.pause_writing()
    while transport.unsent > 500:
        await asyncio.sleep(0.01)
        assert not transport.aborted
    transport.reads = 0
    while not transport.aborted:
        await asyncio.sleep(0.01)
    protocol.connection_lost(None)


async def test_a_client_that_reads_again_is_not() -> None:
    transport = Transport()
    protocol = protocol_on(transport, 0.01)
    transport.unsent = 1000
    protocol.pause_writing()
    protocol.resume_writing()
    await asyncio.sleep(0.05)
    assert not transport.aborted
    # Closing waits for what is unsent, so it must not wait for ever.
    transport.closing = True
    protocol.timeout_keep_alive_handler()
    protocol.on_response_complete()
    protocol.resume_writing()
    while not transport.aborted:
        await asyncio.sleep(0.01)
    protocol.connection_lost(None)
    assert protocol.conn.our_state is not h11.IDLE


def test_a_full_table_of_descriptors_is_said_once(start_fake: StartFake, connect: Connect) -> None:
    server = start(start_fake, header_timeout="short")
    pid = server.process.pid
    room = len([*Path(f"/proc/{pid}/fd").iterdir()]) + 6
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (room, hard))
    # The kernel completes the connections of the backlog; the server cannot take them all.
    silent = [connect(server) for _ in range(20)]
    for connection in silent:
        assert read_to_end(connection) == b"", "all are taken in the end, and closed"
    assert httpx.get(f"{server.url}/health").status_code == 200
    server.stop()
    lines = [line for line in "".join(server.log).splitlines() if line]
    said = [line for line in lines if "cannot accept connections" in line]
    assert len(said) == 1
    assert f"({room} file descriptors are allowed; ulimit -n sets it)" in said[0]
    assert len(lines) < 20, lines


async def test_other_errors_of_the_event_loop_are_logged_as_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = asyncio.get_running_loop()
    AcceptErrors()(loop, {"message": "something else", "exception": OSError(5, "broken")})
    assert "something else" in caplog.text


async def test_a_slow_body_is_refused_by_the_app(tmp_path: Path) -> None:
    async def slow():
        yield b"{"
        await asyncio.sleep(60)

    began = time.monotonic()
    headers = {"content-type": "application/json"}
    async with open_app(tmp_path, body_timeout=0.05) as app:
        answer = await app.client.post("/v1/completions", content=slow(), headers=headers)
    assert answer.status_code == 408
    assert answer.json()["error"]["code"] == "request_timeout"
    assert time.monotonic() - began < 60
