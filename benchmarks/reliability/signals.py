"""A server that is told to stop, or is killed, while it answers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from urllib.parse import urlsplit

from benchmarks.common.result_file import ResultRow
from benchmarks.reliability.client import COMPLETIONS, Completion, Exchange, Reply, ask
from benchmarks.reliability.row import Tally
from benchmarks.reliability.site import Running, Site, prompts

_NEW = 8
"""Requests that come while the server drains."""


async def sigterm(site: Site) -> ResultRow:
    """SIGTERM in mid-stream: what runs and what waits is answered, new requests are refused."""
    tally = Tally("SIGTERM in mid-stream")
    kinds = [Completion(prompt, site.long_tokens) for prompt in prompts(2 * site.clients)]
    seats = ("--engine-option", f"max_sequences={site.clients}", "--shutdown-timeout", "120")
    async with site.server("sigterm", *seats) as running:
        streams = await _started(running, kinds[: site.clients])
        waiting = [asyncio.create_task(ask(running.url, kind)) for kind in kinds[site.clients :]]
        await asyncio.sleep(0.2)  # they are in the queue
        running.server.process().send_signal(signal.SIGTERM)
        late = [Completion(prompt, 8) for prompt in prompts(_NEW)]
        await _refused(tally, running, late)
        replies = [await stream.read() for stream in streams] + await asyncio.gather(*waiting)
        for kind, reply in zip(kinds, replies, strict=True):
            tally.take(running, kind, reply)
        _check_exit(tally, await asyncio.to_thread(running.server.wait))
    return tally.row()


async def sigterm_too_short(site: Site) -> ResultRow:
    """SIGTERM with less time than the answers need: each stream ends with an error that says so."""
    tally = Tally("SIGTERM, no time to finish")
    kinds = [Completion(prompt, site.long_tokens) for prompt in prompts(site.clients)]
    async with site.server("sigterm-short", "--shutdown-timeout", "0.1") as running:
        streams = await _started(running, kinds)
        running.server.process().send_signal(signal.SIGTERM)
        for kind, stream in zip(kinds, streams, strict=True):
            tally.take(running, kind, await stream.read(), "shutting_down")
        _check_exit(tally, await asyncio.to_thread(running.server.wait))
    if not tally.outcome["refused"]:
        tally.problem("all streams were done in time")
    return tally.row()


async def sigkill(site: Site) -> ResultRow:
    """SIGKILL in mid-stream and a restart at the same address; clients try again until answered."""
    tally = Tally("SIGKILL and restart")
    few = [Completion(prompt, site.long_tokens) for prompt in prompts(2)]
    kinds = [few[number % len(few)] for number in range(site.clients)]
    before = _files(site)
    async with site.server("sigkill") as killed:
        await killed.learn(few)
        streams = await _started(killed, kinds)
        killed.server.process().kill()
        for kind, stream in zip(kinds, streams, strict=True):
            reply = await stream.read()
            tally.broken += 1
            if kind.verdict(reply) != "lost":
                tally.problem(f"a stream that was cut looks whole: {reply.status}")
        await asyncio.to_thread(killed.server.wait)
        port = urlsplit(killed.url).port
        retries = [asyncio.create_task(_until_answered(killed.url, kind)) for kind in kinds]
        async with site.server("sigkill-again", port=port) as again:
            again.alone = killed.alone
            for kind, reply in zip(kinds, await asyncio.gather(*retries), strict=True):
                tally.take(again, kind, reply)
            await tally.settle(again)
    if (after := _files(site)) != before:
        tally.problem(f"files of the engine directory changed: {sorted(before ^ after)}")
    return tally.row()


async def _started(running: Running, kinds: Sequence[Completion]) -> list[Exchange]:
    """Streams of which something has come."""
    streams = [await Exchange.open(running.url) for _ in kinds]
    for stream, kind in zip(streams, kinds, strict=True):
        await stream.post(COMPLETIONS, kind.fields())
    await asyncio.gather(*(stream.read(events=1) for stream in streams))
    return streams


async def _refused(tally: Tally, running: Running, kinds: Sequence[Completion]) -> None:
    """The port stays open while the server drains, and says why it takes nothing."""
    while await running.is_ready():
        await asyncio.sleep(0.02)
    for kind in kinds:
        tally.take(running, kind, await ask(running.url, kind), "shutting_down")


async def _until_answered(url: str, completion: Completion) -> Reply:
    """What a client does whose connection broke: it tries again."""
    while True:
        reply = await ask(url, completion)
        if reply.status:
            return reply
        await asyncio.sleep(0.1)


def _check_exit(tally: Tally, code: int) -> None:
    if code != 0:
        tally.problem(f"the server ended with {code}")


def _files(site: Site) -> set[tuple[str, int, int]]:
    found = [path for path in site.directory.rglob("*") if path.is_file()]
    return {(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in found}
