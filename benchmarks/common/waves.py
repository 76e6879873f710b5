"""A wave: requests that start together, and the figures of what they got.

Imports the standard library alone, since it also runs in environments that have nothing of ours.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

FIGURES = ("tokens_per_s", "prompt_tokens_per_s", "decode_tokens_per_s", "ttft_ms", "tpot_ms")


@dataclass(frozen=True)
class Wave:
    """Greedy requests of equal length with random prompts.

    Attributes:
        prompt_tokens, output_tokens: of every request.
        concurrency: how many start together.
        seed: of the prompts.
        masks: the mask of each request; None for the default one.
    """

    prompt_tokens: int
    output_tokens: int
    concurrency: int
    seed: int = 0
    masks: Sequence[str] | None = None

    def prompts(self, vocabulary: range) -> list[tuple[int, ...]]:
        """The token ids of every request."""
        draw = random.Random(self.seed)
        return [
            tuple(draw.choice(vocabulary) for _ in range(self.prompt_tokens))
            for _ in range(self.concurrency)
        ]


async def run_wave(
    wave: Wave,
    vocabulary: range,
    generate: Callable[[int, tuple[int, ...]], AsyncIterator[int]],
) -> dict[str, float]:
    """Send all requests at once, and time them.

    Args:
        wave: the requests.
        vocabulary: token ids that prompts are drawn from.
        generate: the tokens of a request, given its number and prompt, as how many came at a time.

    Returns:
        `figures` of the wave.

    Raises:
        RuntimeError: a request got another number of tokens than it asked for.
    """
    prompts = wave.prompts(vocabulary)
    first, last = [0.0] * wave.concurrency, [0.0] * wave.concurrency
    begin = time.perf_counter()

    async def one(number: int) -> None:
        times: list[float] = []
        async for tokens in generate(number, prompts[number]):
            times += [time.perf_counter()] * tokens
        if len(times) != wave.output_tokens:
            raise RuntimeError(f"{len(times)} tokens came, {wave.output_tokens} were asked for")
        first[number], last[number] = times[0] - begin, times[-1] - begin

    await asyncio.gather(*map(one, range(wave.concurrency)))
    return figures(wave, first, last)


def figures(wave: Wave, first: Sequence[float], last: Sequence[float]) -> dict[str, float]:
    """`FIGURES` and `wall_s` of a wave.

    Args:
        wave: the requests.
        first, last: seconds from the start to the first and to the last token of each request.
    """
    wall, reading, later = max(last), max(first), max(wave.output_tokens - 1, 1)
    pairs = list(zip(first, last, strict=True))
    # From the last first token on, every sequence only generates.
    decoded = sum(later * max(b - reading, 0.0) / (b - a) for a, b in pairs if b > a)
    return {
        "wall_s": wall,
        "tokens_per_s": wave.concurrency * wave.output_tokens / wall,
        "prompt_tokens_per_s": wave.concurrency * wave.prompt_tokens / reading,
        "decode_tokens_per_s": decoded / max(wall - reading, 1e-9),
        "ttft_ms": 1e3 * sum(first) / wave.concurrency,
        "tpot_ms": 1e3 * sum(b - a for a, b in pairs) / wave.concurrency / later,
    }
