"""HTTP/1.1 connections that end when nothing moves on them, or when a request's head is too large.

uvicorn closes connections that are idle after an answer. A client that never sends a request, sends
it byte by byte, sends more than was read, or does not read its answer would hold its connection,
and a file descriptor, for ever.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from serving.errors import ApiError, invalid

MAX_HEADER_BYTES = 32768


@dataclass(frozen=True, slots=True)
class ConnectionTimeouts:
    """How long a client may take, in seconds.

    Attributes:
        header: from the connection, or from the first byte of a further request, to the end of the
            request's headers.
        body: from there to the end of the body.
        idle: between an answer and the next request; and how long a client may read nothing while
            there is more for it.
    """

    header: float
    body: float
    idle: float


class BoundedConnection(h11.Connection):
    """h11's side of a connection, with one bound on a request's head however it comes.

    h11 bounds what is incomplete: a head that comes whole, in one read, may be of any size.

    Attributes:
        head_too_large: whether that is what the last error was about.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEADER_BYTES)
        self.head_too_large = False

    def next_event(self) -> Any:
        """What has come.

        Raises:
            RemoteProtocolError: it is no HTTP, or too large.
        """
        before = len(self.trailing_data[0]) if self.their_state is h11.IDLE else 0
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self.head_too_large = error.error_status_hint == 431
            raise
        if (
            isinstance(event, h11.Request)
            and before - len(self.trailing_data[0]) > MAX_HEADER_BYTES
        ):
            self.head_too_large = True
            raise h11.RemoteProtocolError("the head is too large", error_status_hint=431)
        return event


class TimedProtocol(H11Protocol):
    """uvicorn's protocol with `ConnectionTimeouts`.

    The body's deadline is kept where the body is read (`serving.middleware.BodyLimits`), so that
    the answer is a proper one; here it counts for bodies that nobody reads.
    """

    def __init__(self, *args: Any, timeouts: ConnectionTimeouts, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn: BoundedConnection = BoundedConnection()
        self._timeouts = timeouts
        self._reading = Deadline(self.loop)
        self._writing = Deadline(self.loop)
        self._unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there; its request should be soon."""
        super().connection_made(transport)
        self._reading.start(self._timeouts.header, self._end_of_patience)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._reading.start(self._timeouts.header, self._end_of_patience)
        elif not self._rest_of_body():
            self._reading.stop()

    def on_response_complete(self) -> None:
        """An answer was sent; what comes now is the next request, or a body that nobody reads."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_writing()
        begun = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if begun:
            self._reading.start(self._timeouts.header, self._end_of_patience)
        elif self._rest_of_body():
            self._reading.start(self._timeouts.body, self._end_of_patience)

    def pause_writing(self) -> None:
        """The client does not read as fast as it is answered."""
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        """The client reads again."""
        if not self.transport.is_closing():
            self._writing.stop()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """No further request came."""
        super().timeout_keep_alive_handler()
        self._watch_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        super().connection_lost(exc)
        self._reading.end()
        self._writing.end()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or too much of it."""
        if self.conn.head_too_large:
            self._refuse(ApiError(431, f"the headers are larger than {MAX_HEADER_BYTES} bytes"))
        else:
            self._refuse(invalid(msg, None, "invalid_http"))

    def _rest_of_body(self) -> bool:
        answered = self.cycle is not None and self.cycle.response_complete
        return answered and self.conn.their_state is h11.SEND_BODY

    def _end_of_patience(self) -> None:
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            seconds = self._timeouts.header
            self._refuse(ApiError(408, f"the headers did not come within {seconds:g} s"))
        else:
            self.transport.close()
            self._watch_writing()

    def _refuse(self, error: ApiError) -> None:
        """Answer without the app, and close the connection."""
        # In the middle of an answer there is nothing to add to it.
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.body()).encode()
            headers = {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
                "x-request-id": uuid4().hex,
            }
            status = error.status_code
            events = (
                h11.Response(
                    status_code=status, headers=[*headers.items()], reason=STATUS_PHRASES[status]
                ),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()
        self._watch_writing()

    def _watch_writing(self) -> None:
        """Give up on what is not sent yet when none of it leaves; closing waits for it too."""
        self._unsent = self.transport.get_write_buffer_size()
        self._writing.start(self._timeouts.idle, self._check_writing)

    def _check_writing(self) -> None:
        if self.transport.get_write_buffer_size() >= self._unsent > 0:
            self.transport.abort()
        else:
            self._watch_writing()


class Deadline:
    """One timer. Starting it again does not put it off, and after its end it starts no more."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None
        self._ended = False

    def start(self, seconds: float, then: Callable[[], None]) -> None:
        """Call `then` after so many seconds, unless a time was set before."""
        if self._handle is None and not self._ended:
            self._handle = self._loop.call_later(seconds, self._run, then)

    def stop(self) -> None:
        """Forget the time."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def end(self) -> None:
        """Never run again."""
        self._ended = True
        self.stop()

    def _run(self, then: Callable[[], None]) -> None:
        self._handle = None
        then()
