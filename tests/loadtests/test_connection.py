"""The load generator's connection, and servers that close it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import RemoteDisconnected

import pytest

from loadtests.connection import Connection

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nKeep-Alive: timeout=5\r\n\r\nok"


def read_request(connection: socket.socket) -> bytes:
    """A request of four bytes of body; nothing once the client has closed."""
    data = b""
    while not data.endswith(b"\r\n\r\nbody"):
        more = connection.recv(4096)
        if not more:
            return b""
        data += more
    return data


@contextmanager
def server(answers: list[int]) -> Iterator[str]:
    """Answers so many requests on each connection it accepts, then closes that one."""
    listening = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        for count in answers:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                for _ in range(count):
                    if read_request(connection):
                        connection.sendall(ANSWER)
                if not count:
                    read_request(connection)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.close()
        thread.join(5)


def ask(connection: Connection) -> bytes:
    response = connection.post("/", b"body", {})
    body = response.read()
    connection.finished(reusable=True)
    return body


def test_a_kept_connection_that_the_server_closed_is_opened_again() -> None:
    with server([1, 1, 2]) as address:
        connection = Connection(address, timeout_s=5)
        assert [ask(connection) for _ in range(4)] == [b"ok"] * 4
        connection.close()


def test_a_new_connection_that_the_server_closes_is_an_error() -> None:
    with server([0, 1]) as address:
        connection = Connection(address, timeout_s=5)
        with pytest.raises((RemoteDisconnected, ConnectionResetError)):
            connection.post("/", b"body", {})
        connection.close()


def test_a_server_that_closes_twice_without_an_answer_is_an_error() -> None:
    with server([1, 0]) as address:
        connection = Connection(address, timeout_s=5)
        assert ask(connection) == b"ok"
        with pytest.raises((RemoteDisconnected, ConnectionResetError, BrokenPipeError)):
            connection.post("/", b"body", {})
        connection.close()
