"""Clients that are slow, and clients that say or read nothing."""

from __future__ import annotations

import asyncio

from benchmarks.common.result_file import ResultRow
from benchmarks.reliability.client import COMPLETIONS, Completion, Exchange, Reply, ask
from benchmarks.reliability.row import Tally
from benchmarks.reliability.site import Running, Site, prompts

LIMIT_S = 1.0
"""What a client may take for headers, for a body, and to read something."""
_EACH = 8
_SCORING_S = 300.0
"""For what a real model takes to compute them, and the limit."""
_SCORED_TOKENS = 400
_SCORED_CHOICES = 25
"""Log-probs of some megabytes: more than the system takes for a client that does not read."""


def _limits() -> tuple[str, ...]:
    names = ("--header-timeout", "--body-timeout", "--idle-timeout")
    return tuple(word for name in names for word in (name, str(LIMIT_S)))


async def slow_clients(site: Site) -> ResultRow:
    """Clients that take longer than every limit, and move all the time."""
    tally = Tally("slow clients")
    kinds = [Completion(prompt, 48) for prompt in prompts(4)]
    async with site.server("slow", *_limits()) as running:
        await running.learn(kinds)

        async def reads_slowly(number: int) -> None:
            kind = kinds[number % len(kinds)]
            exchange = await Exchange.open(running.url, receive_buffer=4096)
            await exchange.post(COMPLETIONS, kind.fields())
            # 48 events of 250 bytes.
            tally.take(running, kind, await exchange.read(size=512, pause=4 * LIMIT_S / 24))
            exchange.leave()

        async def is_quick(number: int) -> None:
            kind = kinds[number % len(kinds)]
            tally.take(running, kind, await ask(running.url, kind))

        for _ in range(2):
            await asyncio.gather(*map(reads_slowly, range(_EACH)), *map(is_quick, range(_EACH)))
            await tally.settle(running)
    return tally.row()


async def silent_clients(site: Site) -> ResultRow:
    """Clients that say nothing, half of the headers, half of the body, or read nothing."""
    # Every thread that writes answers of megabytes keeps some of them for the next.
    tally = Tally("silent clients", warm_up=2)
    kinds = [Completion(prompt, 8) for prompt in prompts(4)]
    async with site.server("silent", *_limits()) as running:
        await running.learn(kinds)
        descriptors = running.descriptors()

        async def after(start: bytes, exchange: Exchange) -> Reply:
            await exchange.write(start)
            reply = await exchange.read()
            exchange.leave()
            return reply

        async def says_nothing() -> None:
            reply = await after(b"", await Exchange.open(running.url))
            tally.expect(reply == Reply(), f"to nothing it says {reply}")

        async def half_of_the_headers() -> None:
            exchange = await Exchange.open(running.url)
            _expect_timeout(tally, await after(exchange.head(COMPLETIONS, 9)[:40], exchange))

        async def half_of_the_body() -> None:
            exchange = await Exchange.open(running.url)
            start = exchange.head(COMPLETIONS, 1000) + b'{"prompt": "half'
            _expect_timeout(tally, await after(start, exchange))

        async def answered(number: int) -> None:
            kind = kinds[number % len(kinds)]
            tally.take(running, kind, await ask(running.url, kind))

        for _ in range(4):
            await asyncio.gather(
                *(
                    client()
                    for client in (says_nothing, half_of_the_headers, half_of_the_body)
                    for _ in range(_EACH)
                ),
                _reads_nothing(running, tally),
                *map(answered, range(_EACH)),
            )
            await tally.settle(running)
        if left := await running.descriptors_left(descriptors):
            tally.problem(f"{left} descriptors stay open")
    return tally.row()


def _expect_timeout(tally: Tally, reply: Reply) -> None:
    error = reply.error()
    timed_out = reply.status == 408 and error is not None and error["code"] == "request_timeout"
    tally.expect(timed_out, f"to half a request it says {reply}")


async def _reads_nothing(running: Running, tally: Tally) -> None:
    """Ask for megabytes and read none of them until the server gives up."""
    exchange = await Exchange.open(running.url, receive_buffer=4096)
    fields = {
        "prompt": [1] * _SCORED_TOKENS,
        "max_tokens": 0,
        "prompt_logprobs": 20,
        "n": _SCORED_CHOICES,
    }
    await exchange.post(COMPLETIONS, fields)
    await running.until(lambda: running.serves(exchange.port), "a client is taken")
    await running.until(
        lambda: not running.serves(exchange.port), "a client that reads nothing", _SCORING_S
    )
    reply = await exchange.read()
    exchange.leave()
    tally.expect(not reply.complete, f"it reads nothing, and the server waits: {reply.status}")
