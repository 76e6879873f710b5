"""Runs the app: takes the port, serves, and drains when told to stop."""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from engines.base import Engine
from serving.admission import Admission
from serving.app import create_app, open_engine
from serving.config import ServerSettings
from serving.listener import AcceptErrors, Listener
from serving.log_format import set_up_logging
from serving.protocol import ConnectionTimeouts, TimedProtocol

logger = logging.getLogger("serving")

# How long answers that were ended by a shutdown may take to reach their clients.
FLUSH_SECONDS = 5.0


class DrainingServer(uvicorn.Server):
    """A uvicorn server that stops in the order that load balancers expect.

    After SIGTERM or SIGINT the port stays open: readiness answers 503, new requests are refused
    with 503, running ones go on for up to `timeout` seconds, the rest ends with an error. Only then
    the port closes. A second signal skips the wait.
    """

    def __init__(self, config: uvicorn.Config, admission: Admission, timeout: float) -> None:
        super().__init__(config)
        self._admission = admission
        self._timeout = timeout

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal; it is not raised again at the end, so a clean stop exits with 0."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def main_loop(self) -> None:
        """Serve until a signal comes, then drain."""
        await super().main_loop()
        logger.info(
            "stopping: %d requests may finish within %g s", self._admission.in_flight, self._timeout
        )
        drain = asyncio.create_task(self._admission.drain(self._timeout))
        while not drain.done() and not self.force_exit:
            await asyncio.wait([drain], timeout=0.1)
        drain.cancel()
        ended = await self._admission.drain(0)
        if ended:
            logger.warning("ended %d requests that were still running", ended)
            try:
                await asyncio.wait_for(self._admission.wait_idle(), FLUSH_SECONDS)
            except TimeoutError:
                logger.warning("%d clients do not read", self._admission.in_flight)


def run(settings: ServerSettings, engine: Engine | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        OSError: the address cannot be used, most often because another server has it.
        EngineDirectoryError: the engine directory cannot be read.
    """
    with bind(settings.host, settings.port) as listener:
        asyncio.run(_serve(settings, listener, engine))


async def _serve(settings: ServerSettings, listener: socket.socket, engine: Engine | None) -> None:
    set_up_logging(settings.log_level, settings.log_format)
    # Opened here and not by the app, so that a broken directory is one clear error.
    app = create_app(settings, engine or open_engine(settings))
    asyncio.get_running_loop().set_exception_handler(AcceptErrors())
    timeouts = ConnectionTimeouts(
        settings.header_timeout, settings.body_timeout, settings.idle_timeout
    )
    config = uvicorn.Config(
        app,
        http=partial(TimedProtocol, timeouts=timeouts),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.idle_timeout,  # type: ignore[arg-type]
        timeout_graceful_shutdown=round(FLUSH_SECONDS),
    )
    server = DrainingServer(config, app.state.admission, settings.shutdown_timeout)
    _warn_if_open(settings)
    announce = asyncio.create_task(_announce(server, app, listener))
    try:
        await server.serve(sockets=[listener])
    finally:
        announce.cancel()


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address, not yet listening.

    Raises:
        OSError: naming the address, and what to do if another process listens there.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise OSError(f"the host {host!r} is not known: {error.strerror}") from error
    listener = Listener(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another one with --port"
        ) from error
    return listener


async def _announce(server: DrainingServer, app: FastAPI, listener: socket.socket) -> None:
    while not server.started:
        await asyncio.sleep(0.01)
    host, port = listener.getsockname()[:2]
    names = [card.id for card in app.state.service.names.cards()]
    shown = f"[{host}]" if ":" in host else host
    logger.info("serving %s on http://%s:%d", ", ".join(names), shown, port)


def _warn_if_open(settings: ServerSettings) -> None:
    local = settings.host in ("127.0.0.1", "::1", "localhost")
    if not settings.api_key and not local:
        logger.warning("no API key is set: everybody who reaches %s may use this", settings.host)
