"""A server that can write nothing: neither its log nor any file."""

from __future__ import annotations

import asyncio
import signal

from benchmarks.common.result_file import ResultRow
from benchmarks.reliability.client import Completion, ask
from benchmarks.reliability.masks import loaded_mask
from benchmarks.reliability.row import Tally
from benchmarks.reliability.site import Site, prompts

# Files may have no byte (the limit holds for root, too), and whatever is logged meets a full disk.
NO_ROOM = ("sh", "-c", 'ulimit -f 0 && exec "$@" >/dev/full 2>&1', "sh")
_ROUNDS = 3


async def full_disk(site: Site) -> ResultRow:
    """Everything is answered, masks come and go, and SIGTERM ends it well."""
    tally = Tally("full disk")
    kinds = [Completion(prompt, 16, name) for prompt in prompts(4) for name in site.names()]
    async with site.server("disk", "--access-log", wrapper=NO_ROOM) as running:
        await running.learn(kinds)
        for _ in range(_ROUNDS):
            async with loaded_mask(site, running, site.loadable[0]):
                replies = await asyncio.gather(*(ask(running.url, kind) for kind in kinds))
            for kind, reply in zip(kinds, replies, strict=True):
                tally.take(running, kind, reply)
            await tally.settle(running)
        # An answer that goes wrong is logged, too.
        reply = await running.admin("/v1/unload_mask", {"mask_name": "nowhere"})
        tally.expect(reply.status == 404, f"an unknown mask: {reply}")
        running.server.process().send_signal(signal.SIGTERM)
        if code := await asyncio.to_thread(running.server.wait):
            tally.problem(f"the server ended with {code}")
    return tally.row()
