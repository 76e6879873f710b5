"""One number of waiting sequences, for refusals and for statistics."""

from __future__ import annotations

import threading

import pytest

from engines.cpu.waiting import WaitingCounter
from engines.errors import EngineOverloadedError


def test_all_choices_of_a_request_are_accepted_or_none() -> None:
    waiters = WaitingCounter(3)
    waiters.accept(2)
    with pytest.raises(EngineOverloadedError, match="2 sequences are waiting, and at most 3 may"):
        waiters.accept(2)
    waiters.accept(1)
    waiters.leave(3)
    assert waiters.count == 0


def test_a_preempted_sequence_waits_again_whatever_the_limit() -> None:
    waiters = WaitingCounter(1)
    waiters.accept(1)
    waiters.enter()
    assert waiters.count == 2
    with pytest.raises(EngineOverloadedError):
        waiters.accept(1)


def test_two_threads_lose_no_count() -> None:
    waiters = WaitingCounter(10**6)

    def leave() -> None:
        for _ in range(20_000):
            waiters.leave()

    thread = threading.Thread(target=leave)
    thread.start()
    for _ in range(20_000):
        waiters.accept(1)
    thread.join()
    assert waiters.count == 0
