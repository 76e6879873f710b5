"""The listening socket, and what happens when the process has no file descriptor left.

asyncio then pauses accepting for a second, but before Python 3.12.9 it first tries a connection
after the other, up to the backlog, and logs each failure with a traceback: thousands of lines a
second.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
import time
from typing import Any

logger = logging.getLogger("serving")

_NO_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# Shorter than asyncio's pause, longer than it takes to try the whole backlog.
_ONE_TURN = 0.5
LOG_INTERVAL = 60.0


class Listener(socket.socket):
    """A socket whose `accept` fails once in a turn of the event loop for want of descriptors."""

    _failed_at = -_ONE_TURN

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection.

        Raises:
            BlockingIOError: there is none, or asyncio is to stop trying in this turn.
            OSError: there are no descriptors; asyncio pauses.
        """
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in _NO_RESOURCES:
                raise
            now = time.monotonic()
            if now - self._failed_at < _ONE_TURN:
                raise BlockingIOError(errno.EAGAIN, "no descriptors, as before") from error
            self._failed_at = now
            raise


class AcceptErrors:
    """An event loop's exception handler that names a want of descriptors once a minute."""

    def __init__(self) -> None:
        self._logged_at = -LOG_INTERVAL

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (
            isinstance(error, OSError) and error.errno in _NO_RESOURCES and "socket" in context
        ):
            loop.default_exception_handler(context)
            return
        now = time.monotonic()
        if now - self._logged_at >= LOG_INTERVAL:
            self._logged_at = now
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            logger.error(
                "cannot accept connections: %s (%d file descriptors are allowed; ulimit -n sets"
                " it); trying every second, and saying so once a minute",
                error.strerror,
                limit,
            )
