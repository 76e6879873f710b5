"""Pages and scheduling, without a model."""

from __future__ import annotations

import itertools
import random

import pytest

from engines.cpu.kv_pages import PagePool, extend_chain, prefix_root
from engines.cpu.masks import DenseModel
from engines.cpu.scheduler import Scheduled, Scheduler, SchedulerLimits
from engines.cpu.sequence import Sequence
from engines.cpu.waiting import WaitingCounter
from engines.decoding.output_text import ChoiceText
from engines.decoding.sampler import SequenceSampler
from engines.sampling import SamplingParams

DENSE = DenseModel(0, 0)
_arrivals = itertools.count()


class _NoText:
    def push(self, token_id: int) -> str:
        return ""


def sequence(
    tokens: int, *, first: int = 0, salt: str = "", leader: Sequence | None = None, **options: int
) -> Sequence:
    params = SamplingParams(temperature=0.0, **options)
    ids = list(range(first, first + tokens))
    return Sequence(
        request_id="r",
        index=0,
        arrival=next(_arrivals),
        tokens=ids,
        prompt_length=tokens,
        variant=DENSE,
        root=prefix_root("base", "mask", salt),
        sampler=SequenceSampler(params, ids, frozenset()),
        text=ChoiceText(_NoText(), params, (), 1000),  # type: ignore[arg-type]
        deliver=lambda chunk: None,
        prompt_logprobs=options.get("prompt_logprobs"),
        leader=leader,
    )


def scheduler(
    pages: int = 100,
    *,
    sequences: int = 8,
    step: int = 64,
    mixed: int = 32,
    prefix_cache: bool = True,
    waiters: WaitingCounter | None = None,
) -> Scheduler:
    limits = SchedulerLimits(sequences, step, mixed, 16)
    waiters = waiters or WaitingCounter(1000)
    return Scheduler(PagePool(pages), limits, waiters, prefix_cache=prefix_cache)


def run_step(scheduler: Scheduler, next_token: int = 7) -> list[Scheduled]:
    """One step: computes everything that is scheduled, and samples where logits would come."""
    shares = scheduler.schedule()
    for share in shares:
        samples = share.samples
        scheduler.advance(share)
        if samples:
            share.sequence.tokens.append(next_token)
            share.sequence.started = True
    return shares


def test_a_long_prompt_runs_in_chunks_beside_generating_sequences() -> None:
    s = scheduler(step=64, mixed=32)
    first = sequence(10)
    s.add(first)
    assert [(x.start, x.count) for x in run_step(s)] == [(0, 10)]
    s.add(sequence(100, first=1000))
    counts = [[x.count for x in run_step(s)] for _ in range(4)]
    assert counts == [[1, 32], [1, 32], [1, 32], [1, 4]]
    assert [x.count for x in run_step(s)] == [1, 1]


def test_waiting_sequences_are_admitted_in_order_and_never_overtaken() -> None:
    s = scheduler(pages=10, step=200)
    s.add(sequence(100, first=0))  # 7 pages
    run_step(s)
    large, small = sequence(100, first=500), sequence(5, first=900)
    s.add(large)
    s.add(small)
    run_step(s)
    assert s.waiting == [large, small]
    s.remove(s.running[0])
    run_step(s)
    assert s.running == [large, small]


def test_the_last_arrival_loses_its_pages_and_comes_back() -> None:
    s = scheduler(pages=4, prefix_cache=False)
    old, young = sequence(30), sequence(20, first=100)
    s.add(old)
    s.add(young)
    while s.preemptions == 0:
        run_step(s)
    assert s.waiting == [young]
    assert young.pages == []
    assert young.computed == 0
    s.remove(old)
    shares = run_step(s)
    assert [(x.sequence, x.start, x.count) for x in shares] == [(young, 0, len(young.tokens) - 1)]


def test_prefixes_are_shared_below_the_same_root_only() -> None:
    s = scheduler()
    s.add(sequence(50))
    run_step(s)
    same, other_salt, longer = sequence(50), sequence(50, salt="x"), sequence(60)
    for extra in (same, other_salt, longer):
        s.add(extra)
    for _ in range(4):
        run_step(s)
    # 50 tokens fill three pages of 16.
    assert [x.cached_tokens for x in (same, other_salt, longer)] == [48, 0, 48]
    assert same.pages[:3] == longer.pages[:3]
    assert not set(other_salt.pages) & set(same.pages)


def test_a_fully_cached_prompt_still_computes_its_last_token() -> None:
    s = scheduler()
    s.add(sequence(32))
    run_step(s)
    again = sequence(32)
    s.add(again)
    run_step(s)
    assert again.cached_tokens == 16


def test_choices_wait_for_the_first_to_compute_their_prompt() -> None:
    s = scheduler(step=40)
    first = sequence(70)
    second = sequence(70, leader=first)
    s.add(first)
    s.add(second)
    assert [x.sequence for x in run_step(s)] == [first]
    run_step(s)
    run_step(s)
    assert second.cached_tokens == 64


def test_prompt_logprobs_bound_the_chunk_and_ignore_the_prefix_cache() -> None:
    s = scheduler()
    s.add(sequence(40))
    run_step(s)
    wants = sequence(40, prompt_logprobs=0)
    s.add(wants)
    assert [x.count for x in run_step(s)] == [1, 16]
    assert wants.cached_tokens == 0


def test_random_traffic_leaves_every_page_free_and_nobody_counted() -> None:
    rng = random.Random(3)
    waiters = WaitingCounter(12)
    s = scheduler(pages=20, sequences=5, waiters=waiters)
    live: list[Sequence] = []
    finished = 0
    for step in range(3000):
        if step < 2500 and rng.random() < 0.3 and len(live) < 12:
            new = sequence(rng.randint(1, 120), first=rng.choice([0, 0, 300, 5000]))
            live.append(new)
            waiters.accept(1)
            s.add(new)
        run_step(s, next_token=rng.randint(0, 50))
        for old in list(live):
            if rng.random() < 0.02 or len(old.tokens) > 300 or step > 2600:
                s.remove(old)
                live.remove(old)
                finished += 1
        held = [page for x in s.running for page in x.pages]
        assert s.pool.used == len(set(held))
        assert not any(x.pages for x in s.waiting)
        assert waiters.count == len(s.waiting)
    assert finished > 100
    assert s.preemptions > 0
    assert s.pool.used == 0
    assert s.pool.available == 20


def test_the_pool_forgets_the_least_recently_released_page_first() -> None:
    pool = PagePool(3)
    pages = pool.allocate(3)
    assert pages is not None
    keys = [extend_chain(b"", [i]) for i in range(3)]
    for page, key in zip(pages, keys, strict=True):
        pool.register(page, key)
    assert pool.allocate(1) is None
    pool.release(pages[:1])
    pool.release(pages[1:])
    assert pool.available == 3
    assert pool.allocate(1) == pages[:1]
    assert pool.find(keys[0]) is None
    assert pool.find(keys[1]) == pages[1]
    pool.release([pages[1]])
    pool.release(pages[:1])
    pool.forget()
    assert pool.find(keys[1]) is None
    assert pool.available == 3


def test_the_chain_depends_on_everything_before() -> None:
    root = prefix_root("base", "mask", "")
    assert extend_chain(root, [1, 2]) != extend_chain(root, [2, 1])
    assert extend_chain(extend_chain(root, [1]), [2]) != extend_chain(root, [1, 2])
    names = (("a", "b", ""), ("a", "b", "s"), ("a", "c", ""), ("a", None, ""))
    assert len({prefix_root(*n) for n in names}) == 4


@pytest.mark.parametrize("count", [0, 3])
def test_allocation_is_all_or_nothing(count: int) -> None:
    pool = PagePool(2)
    assert (pool.allocate(count) is None) == (count > 2)
    assert pool.available == 2
