"""A TCP relay between a client and a server that keeps a copy of every byte, and what it heard."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import h11

_CHUNK = 65536


@dataclass
class Exchange:
    """One request and its answer, as they went over the wire.

    Attributes:
        method: of the request.
        path: with the query.
        sent: body of the request.
        status: of the answer; None if the client left before it.
        headers: of the answer, names in small letters.
        received: body of the answer, decompressed.
        complete: whether the whole answer was sent.
    """

    method: str
    path: str
    sent: bytes = b""
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    received: bytes = b""
    complete: bool = False

    @property
    def body(self) -> Any:
        """The request's JSON."""
        return json.loads(self.sent)

    @property
    def streamed(self) -> bool:
        """Whether the answer is a stream of events."""
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def answer(self) -> Any:
        """The answer's JSON."""
        return json.loads(self.received)

    @property
    def events(self) -> list[Any]:
        """The JSON of a stream's events."""
        lines = self.received.decode().splitlines()
        found = (line.removeprefix("data:").strip() for line in lines if line.startswith("data:"))
        return [json.loads(text) for text in found if text != "[DONE]"]


class Tee:
    """Relays connections to `target` unchanged while its `with` lasts; `exchanges` reads the copy.

    Args:
        target: `http://HOST:PORT` of the server.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("http://").rpartition(":")
        self._target = (host, int(port))
        self._copies: list[tuple[bytearray, bytearray]] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Closing alone does not wake a thread that waits in accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(timeout=30)

    def exchanges(self) -> list[Exchange]:
        """What has been said so far, connection by connection in the order they were opened."""
        return [one for copy in self._copies for one in read_exchanges(*map(bytes, copy))]

    def _start(self, run: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            sent, received = bytearray(), bytearray()
            self._copies.append((sent, received))
            self._start(_relay, client, server, sent, received)


def _relay(
    client: socket.socket, server: socket.socket, sent: bytearray, received: bytearray
) -> None:
    with client, server:
        onward = threading.Thread(target=_pump, args=(client, server, sent), daemon=True)
        onward.start()
        _pump(server, client, received)
        onward.join()


def _pump(source: socket.socket, sink: socket.socket, copy: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            copy += data
            sink.sendall(data)
    with contextlib.suppress(OSError):
        # Half of the connection ends; the other half may still have an answer to bring.
        sink.shutdown(socket.SHUT_WR)


def read_exchanges(sent: bytes, received: bytes) -> Iterator[Exchange]:
    """The exchanges of one connection, from the bytes of both directions."""
    server, client = h11.Connection(h11.SERVER), h11.Connection(h11.CLIENT)
    server.receive_data(sent)
    client.receive_data(received)
    client.receive_data(b"")
    while isinstance(request := server.next_event(), h11.Request):
        one = Exchange(request.method.decode(), request.target.decode())
        client.send(request)
        whole = False
        while isinstance(event := server.next_event(), h11.Data | h11.EndOfMessage):
            client.send(event)
            if isinstance(event, h11.EndOfMessage):
                whole = True
                break
            one.sent += bytes(event.data)
        if whole:
            _read_answer(client, server, one)
        yield one
        if not one.complete or client.our_state is not h11.DONE:
            return
        client.start_next_cycle()
        server.start_next_cycle()


def _read_answer(client: h11.Connection, server: h11.Connection, one: Exchange) -> None:
    body = b""
    try:
        while not one.complete:
            event = client.next_event()
            if isinstance(event, h11.Response):
                one.status = event.status_code
                one.headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                one.complete = True
            elif not isinstance(event, h11.InformationalResponse):
                return
            if not isinstance(event, h11.InformationalResponse):
                server.send(event)
    except h11.RemoteProtocolError:
        # The client closed the connection before the whole answer had come.
        return
    finally:
        packed = one.headers.get("content-encoding") == "gzip" and one.complete
        one.received = gzip.decompress(body) if packed else body
