"""What faults are tried on: an engine directory, masks to load, and servers on it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.common.arm_process import ArmError
from benchmarks.common.server_process import Server
from benchmarks.reliability.client import Completion, Reply, ask, post

ADMIN_KEY = "admin-of-the-reliability-run"
_PATIENCE_S = 60.0
_GAUGES = (
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "seconds_since_step",
    "http_generations_in_flight",
    "choices_waiting_first_token",
    "mask_pinned",
)


@dataclass(frozen=True)
class Site:
    """What faults are tried on.

    Attributes:
        directory: engine directory with at least two masks, not sealed.
        model: its name.
        masks: names of its masks.
        loadable: at least two further mask files of the same model.
        parents: mask files that those may be differences to.
        folder: for logs and damaged files.
        long_tokens: of an answer that takes some seconds.
        clients: requests that are under way at a time where a fault does not say otherwise.
    """

    directory: Path
    model: str
    masks: Sequence[str]
    loadable: Sequence[Path]
    parents: Sequence[Path]
    folder: Path
    long_tokens: int
    clients: int = 8

    def names(self) -> list[str]:
        """What requests may call the masks."""
        return [f"{self.model}:{mask}" for mask in self.masks]

    @asynccontextmanager
    async def server(
        self,
        name: str,
        *options: str,
        port: int | None = None,
        wrapper: Sequence[str] = (),
    ) -> AsyncIterator[Running]:
        """A healthy server, ended with the block if it still runs.

        Answers are those of kernels whose results do not depend on batch mates, so that they can be
        compared with those that a request gets alone.

        Args:
            name: of its log.
            options: of `twofour serve`.
            port: to listen on; None for a free one.
            wrapper: what starts the command.

        Raises:
            ArmError: it does not start.
        """
        root = self.folder / "masks"
        if not root.is_dir():
            root.mkdir()
            for file in self.parents:
                shutil.copyfile(file, root / file.name)
        admin = ("--admin-api-key", ADMIN_KEY, "--mask-root", str(root))
        server = Server(
            name,
            self.directory,
            self.folder / f"{name}.log",
            options=("--engine-option", "invariant=true", *admin, *options),
            port=port,
            wrapper=wrapper,
        )
        with server:
            await asyncio.to_thread(server.wait_until_healthy)
            yield Running(server)


@dataclass
class Running:
    """A server process, seen from outside.

    Attributes:
        server: the process.
        alone: what requests were answered when nothing else ran.
    """

    server: Server
    alone: dict[Completion, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Its address."""
        return self.server.url

    async def learn(self, completions: Sequence[Completion]) -> None:
        """Ask each request alone, and keep the answers for comparison.

        Raises:
            ArmError: one is not answered.
        """
        for completion in completions:
            reply = await ask(self.url, completion)
            if completion.verdict(reply) != "answered":
                raise ArmError(f"alone, {completion} got {reply}")
            self.alone[completion] = completion.text(reply)

    async def admin(self, path: str, fields: Mapping[str, Any]) -> Reply:
        """Ask an admin route."""
        return await post(self.url, path, fields, {"authorization": f"Bearer {ADMIN_KEY}"})

    async def is_ready(self) -> bool:
        """Whether it says that it takes requests."""
        async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
            return (await client.get(f"{self.url}/readyz")).status_code == 200

    async def metrics(self) -> dict[str, float]:
        """Gauges that must be 0 when nothing runs, each summed over its labels."""
        async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
            text = (await client.get(f"{self.url}/metrics")).raise_for_status().text
        found = dict.fromkeys(_GAUGES, 0.0)
        for family in text_string_to_metric_families(text):
            name = family.name.removeprefix("twofour:")
            if name in found:
                found[name] += sum(sample.value for sample in family.samples)
        return found

    async def gauges_left(self) -> list[str]:
        """Gauges that do not return to 0 within a minute."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            left = [name for name, value in (await self.metrics()).items() if value]
            if not left or time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.05)

    async def until(
        self, condition: Callable[[], bool], what: str, patience_s: float = _PATIENCE_S
    ) -> None:
        """Wait for something.

        Raises:
            ArmError: it did not happen in time.
        """
        deadline = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > deadline:
                raise ArmError(f"{what}: not within {patience_s:g} s")
            await asyncio.sleep(0.05)

    def serves(self, port: int) -> bool:
        """Whether the process holds the connection of a client's port."""
        found = self.server.process().net_connections("tcp")
        return any(connection.raddr and connection.raddr.port == port for connection in found)

    def rss_mib(self) -> float:
        """Memory that the process has resident, MiB."""
        return float(self.server.process().memory_info().rss / 2**20)

    def descriptors(self) -> int:
        """File descriptors that the process has open."""
        return int(self.server.process().num_fds())

    async def descriptors_left(self, before: int) -> int:
        """How many descriptors more than before stay open for a minute."""
        with contextlib.suppress(ArmError):
            await self.until(lambda: self.descriptors() <= before, "descriptors")
        return max(self.descriptors() - before, 0)


def prompts(count: int) -> list[str]:
    """Texts that differ from the start."""
    return [f"{number}. The river carried the timber down to the mill" for number in range(count)]
