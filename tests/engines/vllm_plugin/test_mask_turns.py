"""The gate: one mask at a time, nobody starves, nothing is lost when requests are cancelled."""

from __future__ import annotations

import asyncio
import random

import pytest

from engines.vllm_plugin.mask_turns import MaskGate


class Recorder:
    """Checks that switches happen only while nobody is inside."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.switches: list[str] = []
        self.failing: set[str] = set()
        self.gate = MaskGate("a", self.switch)

    async def switch(self, mask: str) -> None:
        assert not self.inside
        await asyncio.sleep(0)
        assert not self.inside
        if mask in self.failing:
            raise RuntimeError(f"no {mask}")
        self.switches.append(mask)

    async def request(self, mask: str, turns: int = 1) -> str:
        async with self.gate.enter(mask):
            assert self.gate.active == mask
            assert set(self.inside) <= {mask}
            self.inside.append(mask)
            try:
                for _ in range(turns):
                    await asyncio.sleep(0)
            finally:
                self.inside.remove(mask)
        return mask


async def test_the_active_mask_enters_at_once() -> None:
    recorder = Recorder()
    await asyncio.gather(*(recorder.request("a", 3) for _ in range(5)))
    assert recorder.switches == []


async def test_waiting_requests_are_grouped_by_mask() -> None:
    recorder = Recorder()
    await asyncio.gather(*(recorder.request(mask, 3) for mask in "abcabcabc"))
    assert recorder.switches == ["b", "c", "a"] or recorder.switches == ["b", "a", "c"]
    assert recorder.gate.switches == 3


async def test_a_steady_stream_does_not_starve_another_mask() -> None:
    recorder = Recorder()
    served: list[str] = []

    async def stream() -> None:
        for _ in range(50):
            served.append(await recorder.request("a", 2))

    async def late() -> None:
        await asyncio.sleep(0)
        served.append(await recorder.request("b"))

    await asyncio.gather(stream(), stream(), late())
    assert served.index("b") < 10


async def test_a_failed_switch_reaches_those_who_waited_and_nobody_else() -> None:
    recorder = Recorder()
    recorder.failing.add("b")
    results = await asyncio.gather(
        recorder.request("a", 2),
        recorder.request("b"),
        recorder.request("b"),
        recorder.request("c"),
        return_exceptions=True,
    )
    assert results[0] == "a"
    assert isinstance(results[1], RuntimeError)
    assert isinstance(results[2], RuntimeError)
    assert results[3] == "c"
    assert await recorder.request("a") == "a"


@pytest.mark.parametrize("seed", range(20))
async def test_random_arrivals_and_cancellations(seed: int) -> None:
    rng = random.Random(seed)
    recorder = Recorder()
    tasks = []
    for _ in range(60):
        tasks.append(asyncio.create_task(recorder.request(rng.choice("abc"), rng.randint(0, 4))))
        if rng.random() < 0.3:
            rng.choice(tasks).cancel()
        for _ in range(rng.randint(0, 3)):
            await asyncio.sleep(0)
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert all(isinstance(r, str | asyncio.CancelledError) for r in results)
    for mask in "cba":
        assert await asyncio.wait_for(recorder.request(mask), 10) == mask
    assert recorder.gate.waiting.total() == 0
    assert recorder.inside == []
