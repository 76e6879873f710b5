"""Times of layers by width: the line through them, and that every width is run."""

from __future__ import annotations

import pytest

from engines.cpu import layer_latency
from engines.cpu.layer_latency import (
    LatencyError,
    attention_latency,
    feed_forward_latency,
    fitted,
)


def test_the_line_through_times_that_lie_on_one() -> None:
    line = fitted({count: 3e-6 + 2e-7 * count for count in (16, 32, 48, 64)})
    assert (line.unit, line.fixed) == pytest.approx((0.2, 3.0))


def test_a_line_never_starts_below_zero() -> None:
    assert fitted({10: 1e-6, 20: 3e-6}).fixed == 0


def test_times_that_do_not_grow_are_refused() -> None:
    with pytest.raises(LatencyError, match=r"2\.0 us with 10, 1\.0 us with 20.*quieter machine"):
        fitted({10: 2e-6, 20: 1e-6})


def test_layers_of_every_width_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_latency, "_CACHE_BYTES", 1 << 15)
    monkeypatch.setattr(layer_latency, "_ROUNDS", 2)
    seen: list[dict[int, float]] = []
    monkeypatch.setattr(layer_latency, "fitted", seen.append)
    feed_forward_latency(32, 64, tokens=2)
    attention_latency(32, 1, repeat=3, head=8, threads=1)
    assert [sorted(times) for times in seen] == [[16, 32, 48, 64], [1, 2]]
    assert all(0 < seconds < 10 for times in seen for seconds in times.values())
