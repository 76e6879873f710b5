"""A client of completions that can be well-behaved, slow, silent, or leave at any point."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import h11

COMPLETIONS = "/v1/completions"
Verdict = Literal["answered", "refused", "lost"]

_RESET = struct.pack("ii", 1, 0)
_ERROR_KEYS = {"message", "type", "param", "code"}


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one request.

    Attributes:
        status: of the answer; 0 when none began.
        body: so far as it came.
        complete: whether the answer came to the end that HTTP gives it.
        retry_after: that header.
    """

    status: int = 0
    body: bytes = b""
    complete: bool = False
    retry_after: str | None = None

    def events(self) -> list[str]:
        """The data of server-sent events that came whole."""
        lines = self.body.decode(errors="replace").split("\n\n")[:-1]
        return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]

    def error(self) -> dict[str, Any] | None:
        """The error that it is, or that its stream ended with; None if it is none or no proper one.

        Every error of the server is an object with four keys.
        """
        if not self.complete:
            return None
        text = self.body.decode(errors="replace")
        events = self.events()
        found = _json(events[-1] if events else text).get("error")
        proper = isinstance(found, dict) and found.keys() == _ERROR_KEYS
        return found if proper else None


@dataclass(frozen=True, slots=True)
class Completion:
    """A greedy request for exactly so many tokens.

    Attributes:
        prompt: text.
        tokens: to generate.
        model: `base:mask`; None for the served one.
        stream: whether it comes as events.
    """

    prompt: str
    tokens: int
    model: str | None = None
    stream: bool = True

    def fields(self) -> dict[str, Any]:
        """The body."""
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        return {
            "model": self.model,
            "prompt": self.prompt,
            "max_tokens": self.tokens,
            "temperature": 0,
            "ignore_eos": True,
        } | (streamed if self.stream else {})

    def verdict(self, reply: Reply) -> Verdict:
        """Whether the whole answer came, or a proper error in its place; else it is lost."""
        if reply.error() is not None:
            return "refused"
        if not reply.complete or reply.status != 200:
            return "lost"
        return "answered" if self._tokens(reply) == self.tokens else "lost"

    def text(self, reply: Reply) -> str:
        """The text of an answer."""
        chunks = [_json(e) for e in reply.events()[:-1]] if self.stream else [_json(reply.body)]
        return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])

    def fingerprint(self, reply: Reply) -> str:
        """Which weights answered."""
        first = reply.events()[0] if self.stream else reply.body
        return str(_json(first)["system_fingerprint"])

    def _tokens(self, reply: Reply) -> int:
        """How many the answer says it has; -1 for a stream without its proper end."""
        if not self.stream:
            return int(_json(reply.body)["usage"]["completion_tokens"])
        *events, done = reply.events() or [""]
        if done != "[DONE]" or not events:
            return -1
        return int((_json(events[-1]).get("usage") or {}).get("completion_tokens", -1))


class Exchange:
    """One connection with one request; see `open`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT)
        self._status = 0
        self._body = b""
        self._retry_after: str | None = None

    @classmethod
    async def open(cls, url: str, *, receive_buffer: int | None = None) -> Self:
        """Connect.

        Args:
            url: of the server.
            receive_buffer: bytes that the system takes for a client that does not read; None for
                its own choice.

        Raises:
            OSError: nobody listens.
        """
        address = urlsplit(url)
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        try:
            where = (address.hostname, address.port)
            await asyncio.get_running_loop().sock_connect(sock, where)
            # What the system holds is enough: a reader that fetches ahead is no slow one.
            return cls(*await asyncio.open_connection(sock=sock, limit=1024))
        except BaseException:
            sock.close()
            raise

    @property
    def port(self) -> int:
        """The client's own."""
        return int(self._writer.get_extra_info("sockname")[1])

    def head(self, path: str, length: int, headers: Mapping[str, str] = {}) -> bytes:
        """The head of a request with a body of so many bytes."""
        request = h11.Request(
            method="POST",
            target=path,
            headers=[
                ("host", "loopback"),
                ("content-type", "application/json"),
                ("content-length", str(length)),
                ("connection", "close"),
                *headers.items(),
            ],
        )
        return self._http.send(request) or b""

    async def post(
        self,
        path: str,
        fields: Mapping[str, Any],
        headers: Mapping[str, str] = {},
    ) -> None:
        """Send a whole request."""
        body = json.dumps(fields).encode()
        head = self.head(path, len(body), headers)
        await self.write(head + self.rest(body))

    def rest(self, body: bytes) -> bytes:
        """The body of the request, after its head."""
        sent = self._http.send(h11.Data(data=body)) or b""
        return sent + (self._http.send(h11.EndOfMessage()) or b"")

    async def write(self, data: bytes) -> None:
        """Send bytes.

        Raises:
            OSError: the server has closed the connection.
        """
        self._writer.write(data)
        await self._writer.drain()

    async def read(
        self, *, events: int | None = None, size: int = 65536, pause: float = 0
    ) -> Reply:
        """Read the answer to its end, and close the connection; or read up to so many events.

        Args:
            events: stop once so many have come.
            size: bytes to take at a time.
            pause: seconds between two takings.
        """
        complete = False
        while not complete and (events is None or self._body.count(b"data: ") < events):
            try:
                data = await self._reader.read(size)
            except OSError:  # reset
                break
            complete = self._take(data)
            if not data:
                break
            await asyncio.sleep(pause)
        if events is None:  # there is no more to come, however the answer ended
            self.leave()
        return Reply(self._status, self._body, complete, self._retry_after)

    def _take(self, data: bytes) -> bool:
        """Whether the answer has ended with it."""
        self._http.receive_data(data)
        while True:
            try:
                event: Any = self._http.next_event()
            except h11.RemoteProtocolError:  # the connection closed in mid-answer
                return False
            if isinstance(event, h11.Response):
                self._status = event.status_code
                headers = {name.decode(): value.decode() for name, value in event.headers}
                self._retry_after = headers.get("retry-after")
            elif isinstance(event, h11.Data):
                self._body += event.data
            else:
                return isinstance(event, h11.EndOfMessage)

    def leave(self, *, reset: bool = False) -> None:
        """Close the connection; with a reset it takes nothing more."""
        if reset:
            sock = self._writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._writer.close()


async def ask(url: str, completion: Completion) -> Reply:
    """Send a completion and read all of its answer; an empty reply when nobody listens."""
    return await post(url, COMPLETIONS, completion.fields())


async def post(
    url: str,
    path: str,
    fields: Mapping[str, Any],
    headers: Mapping[str, str] = {},
) -> Reply:
    """The same for any route."""
    try:
        exchange = await Exchange.open(url)
    except OSError:
        return Reply()
    try:
        await exchange.post(path, fields, headers)
        return await exchange.read()
    except OSError:
        return Reply()
    finally:
        exchange.leave()


def _json(text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
