"""A server that somebody else started, known by its address alone."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from benchmarks.common.arm_process import ArmError
from benchmarks.common.machine import process_seconds

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_DESCRIPTIONS = ("/version", "/props")
_LONGEST_TEXT = 2000


@dataclass(frozen=True, slots=True)
class RunningServerReport:
    """What is known of such a server.

    Attributes:
        arm: its name in the comparison.
        url: its address.
        models: what `/v1/models` lists.
        says: `/version` or `/props`, whichever it has, without long texts.
    """

    arm: str
    url: str
    models: list[str]
    says: dict[str, Any]


class RunningServer:
    """A server at an address, and its process where that is of this machine.

    Args:
        arm: its name in messages.
        url: its address.
    """

    def __init__(self, arm: str, url: str) -> None:
        self.arm = arm
        self.url = url
        self._process = _listener(url)

    def report(self) -> RunningServerReport:
        """What it says about itself.

        Raises:
            ArmError: it does not answer as OpenAI's API does.
        """
        listed = self._json("/v1/models")
        try:
            models = [str(model["id"]) for model in listed["data"]]
        except (KeyError, TypeError) as error:
            raise ArmError(f"the {self.arm} server lists no models at {self.url}") from error
        return RunningServerReport(self.arm, self.url, models, self._description())

    def cpu_seconds(self) -> float:
        """CPU time of its processes so far; 0 when it runs elsewhere."""
        if self._process is None:
            return 0.0
        total = 0.0
        with contextlib.suppress(psutil.Error):
            for process in (self._process, *self._process.children(recursive=True)):
                total += process_seconds(process)
        return total

    def _description(self) -> dict[str, Any]:
        for path in _DESCRIPTIONS:
            with contextlib.suppress(ArmError):
                said = self._json(path)
                if isinstance(said, dict):
                    return {k: v for k, v in said.items() if len(str(v)) <= _LONGEST_TEXT}
        return {}

    def _json(self, path: str) -> Any:
        try:
            answer = httpx.get(self.url + path, timeout=10, trust_env=False)
            return answer.raise_for_status().json()
        except (httpx.HTTPError, ValueError) as error:
            raise ArmError(f"the {self.arm} server does not answer {path}: {error}") from error


def _listener(url: str) -> psutil.Process | None:
    """The process of this machine that listens at a loopback address, if that can be told."""
    parts = urlsplit(url)
    if parts.hostname not in _LOOPBACK:
        return None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            here = connection.laddr[1:] == (port,) and connection.status == psutil.CONN_LISTEN
            if here and connection.pid:
                return psutil.Process(connection.pid)
    return None
