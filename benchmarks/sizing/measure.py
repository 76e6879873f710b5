"""Requests to a real server, timed by their client."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from benchmarks.sizing.replica_model import Job

_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Timed:
    """One answer.

    Attributes:
        late: seconds that it was sent after it was due.
        tokens: seconds from when it was due to each event with a token.
    """

    late: float
    tokens: list[float]


class UnfinishedError(RuntimeError):
    """The server did not give what was asked for."""


async def send_all(url: str, model: str, vocabulary: int, jobs: Sequence[Job]) -> list[Timed]:
    """Send each job when it is due, whatever has become of the earlier ones.

    Args:
        url: of the server.
        model: to ask for.
        vocabulary: token ids below it make up the prompts.
        jobs: what to ask for.

    Raises:
        UnfinishedError: an answer has another length than was asked for.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, limits=limits) as client:
        begin = time.perf_counter()
        tasks = [_send(client, model, vocabulary, job, begin, i) for i, job in enumerate(jobs)]
        return list(await asyncio.gather(*tasks))


async def _send(
    client: httpx.AsyncClient, model: str, vocabulary: int, job: Job, begin: float, number: int
) -> Timed:
    draw = random.Random(f"prompt:{number}:{job}")
    body = {
        "model": model,
        "prompt": [draw.randrange(vocabulary) for _ in range(job.prompt)],
        "max_tokens": job.output,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    due = begin + job.arrival
    await asyncio.sleep(max(0.0, due - time.perf_counter()))
    late = time.perf_counter() - due
    tokens: list[float] = []
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                tokens.append(time.perf_counter() - due)
    # The last event says why the answer ended, and has a token only if it is the last one.
    if answer.status_code != 200 or not 0 <= len(tokens) - job.output <= 1:
        raise UnfinishedError(
            f"{answer.status_code} with {len(tokens)} events for {job.output} tokens"
        )
    return Timed(late, tokens[: job.output])
