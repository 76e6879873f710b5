"""Decides, step by step, which tokens of which sequences run.

Iteration-level scheduling (Orca, OSDI 2022) over a paged cache (vLLM, SOSP 2023): sequences join
and leave between steps, long prompts run in chunks beside the others' single tokens, and when pages
run out the sequence that came last gives its up and is recomputed later.

Waiting sequences are admitted strictly in order of arrival, so none is overtaken for ever.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from engines.cpu.kv_pages import PagePool
from engines.cpu.model import PAGE_POSITIONS
from engines.cpu.sequence import Sequence
from engines.cpu.waiting import WaitingCounter


@dataclass(frozen=True)
class SchedulerLimits:
    """Bounds of one step.

    Attributes:
        sequences: most sequences that run at once.
        step_tokens: most tokens of one step.
        mixed_prefill_tokens: most prompt tokens of a step in which others generate: they wait for
            it, so it bounds the time between their tokens.
        prompt_rows: most prompt positions of one step whose logits are wanted.
    """

    sequences: int
    step_tokens: int
    mixed_prefill_tokens: int
    prompt_rows: int


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Tokens [start, start + count) of a sequence that run in this step."""

    sequence: Sequence
    start: int
    count: int

    @property
    def is_last(self) -> bool:
        """Whether all that the sequence knows is computed with it."""
        return self.start + self.count == self.sequence.known

    @property
    def samples(self) -> bool:
        """Whether the last token's logits give the sequence its next token."""
        return self.is_last and not self.sequence.scores_only


class Scheduler:
    """Holds all sequences of an engine.

    Args:
        pool: pages of the key-value cache.
        limits: bounds of a step.
        waiters: told which sequences start, wait again, or end while they wait; those that are
            added were accepted there before.
        prefix_cache: whether sequences may share pages.
    """

    def __init__(
        self,
        pool: PagePool,
        limits: SchedulerLimits,
        waiters: WaitingCounter,
        *,
        prefix_cache: bool = True,
    ) -> None:
        self.pool = pool
        self.limits = limits
        self._waiters = waiters
        self.preemptions = 0
        self.cached_tokens = 0
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self._prefix_cache = prefix_cache

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence, or one that lost its pages, where its arrival places it."""
        insort(self.waiting, sequence, key=lambda s: s.arrival)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence and free its pages."""
        sequence.finished = True
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
            self._waiters.leave()
        self._free(sequence)

    def schedule(self) -> list[Scheduled]:
        """The next step's tokens; pages for them are taken. Empty when nothing can run."""
        counts: dict[Sequence, int] = {}
        generating = [s for s in self.running if s.remaining == 1]
        prefilling = [s for s in self.running if s.remaining > 1]
        budget = self.limits.step_tokens
        for sequence in generating:
            budget -= self._take(sequence, 1, counts) if budget else 0
        if any(s in counts for s in generating):
            budget = min(budget, self.limits.mixed_prefill_tokens)
        rows = self.limits.prompt_rows
        for sequence in prefilling:
            count = self._take(sequence, self._chunk(sequence, budget, rows), counts)
            budget -= count
            rows -= count if sequence.wants_prompt_rows else 0
        while self.waiting and budget > 0 and len(self.running) < self.limits.sequences:
            sequence = self.waiting[0]
            if not self._admit(sequence):
                break
            count = self._take(sequence, self._chunk(sequence, budget, rows), counts)
            budget -= count
            rows -= count if sequence.wants_prompt_rows else 0
        return [Scheduled(s, s.computed, count) for s, count in counts.items() if count]

    def advance(self, scheduled: Scheduled) -> None:
        """Record that a scheduled share has been computed; its full pages can now be shared."""
        sequence = scheduled.sequence
        sequence.computed = scheduled.start + scheduled.count
        if not self._prefix_cache:
            return
        for page in range(sequence.registered, sequence.computed // PAGE_POSITIONS):
            self.pool.register(sequence.pages[page], sequence.key(page))
            sequence.registered = page + 1

    def _chunk(self, sequence: Sequence, budget: int, rows: int) -> int:
        room = min(budget, rows) if sequence.wants_prompt_rows else budget
        return min(sequence.remaining, max(room, 0))

    def _take(self, sequence: Sequence, count: int, counts: dict[Sequence, int]) -> int:
        """Find pages for `count` more tokens, preempting later arrivals; how many will run."""
        if count < 1 or sequence not in self.running:
            return 0
        while not self._grow(sequence, sequence.computed + count):
            victim = max(self.running, key=lambda s: s.arrival)
            counts.pop(victim, None)
            self._preempt(victim)
            if victim is sequence:
                return 0
        counts[sequence] = count
        return count

    def _grow(self, sequence: Sequence, positions: int) -> bool:
        missing = -(-positions // PAGE_POSITIONS) - len(sequence.pages)
        if missing > 0:
            pages = self.pool.allocate(missing)
            if pages is None:
                return False
            sequence.pages += pages
        return True

    def _admit(self, sequence: Sequence) -> bool:
        """Start the first waiting sequence if its whole prompt finds room beside the others."""
        leader = sequence.leader
        if leader is not None and not leader.prompt_done and leader in self.running:
            return False
        sequence.leader = None
        if self._prefix_cache and not sequence.wants_prompt_rows:
            self._find_prefix(sequence)
        needed = -(-(sequence.known + (not sequence.scores_only)) // PAGE_POSITIONS) - len(
            sequence.pages
        )
        if needed > self.pool.available:
            self._free(sequence)
            return False
        if not sequence.admitted:
            sequence.admitted = True
            sequence.cached_tokens = sequence.computed
            self.cached_tokens += sequence.computed
        self.waiting.pop(0)
        self._waiters.leave()
        self.running.append(sequence)
        return True

    def _find_prefix(self, sequence: Sequence) -> None:
        # The last token is always computed: its logits are what the sequence goes on from.
        for page in range((sequence.known - 1) // PAGE_POSITIONS):
            found = self.pool.find(sequence.key(page))
            if found is None:
                break
            sequence.pages.append(found)
        sequence.registered = len(sequence.pages)
        sequence.computed = len(sequence.pages) * PAGE_POSITIONS

    def _preempt(self, sequence: Sequence) -> None:
        self.preemptions += 1
        self.running.remove(sequence)
        self._waiters.enter()
        self._free(sequence)
        if sequence.wants_prompt_rows:
            sequence.prompt_rows = [None]
        self.add(sequence)

    def _free(self, sequence: Sequence) -> None:
        self.pool.release(sequence.pages)
        sequence.pages = []
        sequence.computed = 0
        sequence.registered = 0
