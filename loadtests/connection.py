"""A keep-alive HTTP connection for timing streams.

The standard library's client on purpose. Its `readline` hands a line over as soon as its bytes are
there, and a request costs a fraction of the CPU that `requests` (locust's `HttpUser`) takes: many
streams that start at once would wait for each other in the load generator. Locust's `FastHttpUser`
fills blocks of 1024 bytes before it yields a line, which makes a stream look like bursts, and
`locust.contrib.oai.OpenAIUser` reads the whole body as one JSON document.
`loadtests.client_calibration` measures this client before every comparison.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from urllib.parse import urlsplit

_CONNECT_TIMEOUT_S = 10.0
# Servers close idle connections (uvicorn after 5 s); a request sent at that moment would be lost.
_IDLE_LIMIT_S = 2.0
# What a kept connection meets whose server closed it after the last answer, which llama-server does
# after every stream although it announces `Keep-Alive`. Nothing was answered: a new one may ask
# again (RFC 9112, 9.3.1). The time of the first attempt counts.
_CLOSED = (ConnectionResetError, BrokenPipeError)  # the first has RemoteDisconnected in it


class Connection:
    """One connection to `host` (`http://name:port`), opened when needed and kept open.

    Raises:
        ValueError: not an http or https address.
    """

    def __init__(self, host: str, timeout_s: float) -> None:
        parts = urlsplit(host)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"server {host!r}: expected an address such as http://127.0.0.1:8000")
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._http = kind(parts.hostname, parts.port, timeout=_CONNECT_TIMEOUT_S)
        self._prefix = parts.path.rstrip("/")
        self._timeout_s = timeout_s
        self._used_at = time.perf_counter()

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> HTTPResponse:
        """Send a request and wait for the response's headers.

        Raises:
            OSError, http.client.HTTPException: no connection, or it broke, or silence for longer
                than the timeout.
        """
        if time.perf_counter() - self._used_at > _IDLE_LIMIT_S:
            self.close()
        if self._http.sock is None:
            self._open()
            return self._send(path, body, headers)
        try:
            return self._send(path, body, headers)
        except _CLOSED:
            self.close()
            self._open()
            return self._send(path, body, headers)

    def _send(self, path: str, body: bytes, headers: dict[str, str]) -> HTTPResponse:
        self._http.request("POST", self._prefix + path, body=body, headers=headers)
        return self._http.getresponse()

    def _open(self) -> None:
        self._http.connect()
        self._http.sock.settimeout(self._timeout_s)

    def finished(self, *, reusable: bool) -> None:
        """The response was read; keep the connection if it was read to its proper end."""
        self._used_at = time.perf_counter()
        if not reusable:
            self.close()

    def close(self) -> None:
        """Close; the next request opens it again."""
        self._http.close()


def lines(response: HTTPResponse) -> Iterator[bytes]:
    """Lines of the body without their ends, each as soon as it has arrived.

    A connection that the server closes in mid-stream ends the lines: what they say must tell (a
    stream of completions ends with `[DONE]`).

    Raises:
        OSError: the connection broke, or was silent for longer than the timeout.
    """
    while line := response.readline():
        yield line.rstrip(b"\r\n")
