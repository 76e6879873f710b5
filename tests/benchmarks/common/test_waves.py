"""Waves: what is sent, and figures from times that are known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from benchmarks.common.waves import FIGURES, Wave, figures, run_wave


def test_figures_of_known_times() -> None:
    # Tokens of the first request: 1 to 5 s; of the second: 3 to 5 s.
    found = figures(Wave(10, 5, 2), first=[1.0, 3.0], last=[5.0, 5.0])
    assert found["wall_s"] == 5
    assert found["tokens_per_s"] == 2 * 5 / 5
    assert found["prompt_tokens_per_s"] == 2 * 10 / 3
    # From 3 s on the first has 2 of its 4 later tokens left, the second all 4.
    assert found["decode_tokens_per_s"] == pytest.approx((2 + 4) / 2)
    assert found["ttft_ms"] == 2000
    assert found["tpot_ms"] == pytest.approx(1e3 * (4 + 2) / 2 / 4)
    assert set(FIGURES) <= found.keys()


def test_one_token_each_has_no_later_ones() -> None:
    found = figures(Wave(10, 1, 1), first=[2.0], last=[2.0])
    assert (found["decode_tokens_per_s"], found["tpot_ms"]) == (0, 0)


def test_all_requests_of_a_wave_run_together() -> None:
    wave = Wave(prompt_tokens=4, output_tokens=3, concurrency=2, seed=1)
    prompts: dict[int, tuple[int, ...]] = {}
    both = asyncio.Event()

    async def generate(number: int, prompt: tuple[int, ...]) -> AsyncIterator[int]:
        prompts[number] = prompt
        if len(prompts) == 2:
            both.set()
        await asyncio.wait_for(both.wait(), 10)
        yield 2  # tokens may come several at a time
        yield 1

    found = asyncio.run(run_wave(wave, range(5, 9), generate))
    assert found["tokens_per_s"] > 0
    assert list(prompts.values()) == wave.prompts(range(5, 9))
    assert {len(prompt) for prompt in prompts.values()} == {4}
    assert all(token in range(5, 9) for prompt in prompts.values() for token in prompt)
    assert wave.prompts(range(5, 9)) != Wave(4, 3, 2, seed=2).prompts(range(5, 9))


def test_a_request_that_got_too_little_is_no_figure() -> None:
    async def generate(number: int, prompt: tuple[int, ...]) -> AsyncIterator[int]:
        yield 1

    with pytest.raises(RuntimeError, match="1 tokens came, 3 were asked for"):
        asyncio.run(run_wave(Wave(4, 3, 1), range(9), generate))
