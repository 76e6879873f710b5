"""More requests than fit, and clients that leave."""

from __future__ import annotations

import asyncio
from itertools import cycle, islice

from benchmarks.common.result_file import ResultRow
from benchmarks.reliability.client import COMPLETIONS, Completion, Exchange, ask
from benchmarks.reliability.row import Tally
from benchmarks.reliability.site import Running, Site, prompts

ROOM = 24
"""Slots of the waiting room."""
WAVES = 5
DISCONNECTS = 500
_WARM_UP = 100
_STAY = 10
"""One client in so many stays."""
_AT_A_TIME = 16


async def overload(site: Site) -> ResultRow:
    """Ten times as many requests at once as the waiting room holds, wave after wave."""
    tally = Tally("10x overload")
    rooms = ("--max-waiting", str(ROOM), "--max-choices", str(ROOM))
    kinds = [
        Completion(prompt, 8, stream=stream) for prompt in prompts(4) for stream in (True, False)
    ]
    async with site.server("overload", *rooms) as running:
        await running.learn(kinds)
        for _ in range(WAVES):
            sent = list(islice(cycle(kinds), 10 * ROOM))
            replies = await asyncio.gather(*(ask(running.url, kind) for kind in sent))
            for kind, reply in zip(sent, replies, strict=True):
                tally.take(running, kind, reply, "overloaded")
            await tally.settle(running)
    if tally.outcome["answered"] < ROOM * WAVES or not tally.outcome["refused"]:
        tally.problem(f"of {10 * ROOM} requests a wave not one room is answered, or none refused")
    return tally.row()


async def disconnects(site: Site) -> ResultRow:
    """Clients that leave at every point of an exchange, among some that stay."""
    tally = Tally(f"{DISCONNECTS} disconnects")
    stays = [Completion(prompt, 8) for prompt in prompts(4)]
    async with site.server("disconnects") as running:
        await running.learn(stays)
        gate = asyncio.Semaphore(_AT_A_TIME)
        descriptors = running.descriptors()

        async def one(number: int) -> None:
            async with gate:
                await _leave(running, number, site.long_tokens)
                tally.outcome["left"] += 1
                if number % _STAY == 0:
                    kind = stays[number // _STAY % len(stays)]
                    tally.take(running, kind, await ask(running.url, kind))

        await asyncio.gather(*map(one, range(_WARM_UP)))
        await tally.settle(running)
        await asyncio.gather(*map(one, range(_WARM_UP, DISCONNECTS)))
        await tally.settle(running)
        if left := await running.descriptors_left(descriptors):
            tally.problem(f"{left} descriptors stay open")
    return tally.row()


async def _leave(running: Running, number: int, tokens: int) -> None:
    """Leave in one of six places, with and without a reset."""
    place = number % 6
    exchange = await Exchange.open(running.url)
    completion = Completion(f"{number}. A client that leaves", tokens, stream=place != 5)
    try:
        if place == 0:
            await exchange.write(exchange.head(COMPLETIONS, 1000)[:30])
        elif place == 1:
            await exchange.write(exchange.head(COMPLETIONS, 1000) + b'{"prompt": "half')
        else:
            await exchange.post(COMPLETIONS, completion.fields())
        if place in (3, 4):
            await exchange.read(events=1 if place == 3 else 5)
        elif place == 5:
            await asyncio.sleep(0.05)
    finally:
        exchange.leave(reset=number % 4 < 2)
