from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.blocks import Block, LoadPoint, doubts, problems, turns
from loadtests.comparison import paired_ratio, rows
from loadtests.samples import RequestSample
from loadtests.summary import summarise

Make = Callable[..., RequestSample]


def test_arms_take_turns_in_alternating_order() -> None:
    order = [arm for _, arm in turns(["dense", "sparse"], 4)]
    assert "".join(arm[0] for arm in order) == "dssddssd"


def test_ratio_and_interval_of_known_numbers() -> None:
    # Logs of the ratios are ln 2 +- 0.1: standard error 0.1 / sqrt(3), t(2, 0.975) = 4.3027.
    ratios = [2 * math.exp(d) for d in (-0.1, 0.0, 0.1)]
    found = paired_ratio([100.0, 50.0, 10.0], [100 * ratios[0], 50 * ratios[1], 10 * ratios[2]])
    half = 4.3026527 * 0.1 / math.sqrt(3)
    assert found.value == pytest.approx(2.0)
    assert found.low == pytest.approx(2 * math.exp(-half), rel=1e-6)
    assert found.high == pytest.approx(2 * math.exp(half), rel=1e-6)


def test_one_repeat_has_no_interval() -> None:
    found = paired_ratio([10.0], [15.0])
    assert (found.value, found.low, found.high) == (pytest.approx(1.5), None, None)


@given(st.lists(st.tuples(st.floats(1, 1e4), st.floats(1, 1e4)), min_size=2, max_size=8))
def test_swapping_the_arms_inverts_the_interval(pairs: list[tuple[float, float]]) -> None:
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    there, back = paired_ratio(a, b), paired_ratio(b, a)
    assert there.low is not None
    assert back.high is not None
    assert there.value * back.value == pytest.approx(1.0)
    assert math.log(there.low) == pytest.approx(-math.log(back.high), abs=1e-6)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0])])
def test_nonsense_has_no_ratio(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match=r"pair|ratio"):
        paired_ratio(a, b)


POINT = LoadPoint("7/5", concurrency=1)


def _block(sample: RequestSample, arm: str, repeat: int, **changed: Any) -> Block:
    summary = dataclasses.replace(summarise([sample]), **changed)
    return Block(arm, POINT, repeat, summary, f"{arm}{repeat}", 0.01 * repeat, 0.0)


def _sample(make: Make, e2e: float, error: str | None = None) -> RequestSample:
    return make(e2e_s=e2e, token_times_s=[0.05, e2e], error=error)


def _measured(
    make: Make, times: dict[tuple[str, int], float]
) -> tuple[list[Block], dict[str, list[RequestSample]]]:
    """Blocks of one request each, and their samples, from (arm, repeat) -> E2E."""
    samples = {f"{arm}{repeat}": [_sample(make, e2e)] for (arm, repeat), e2e in times.items()}
    blocks = [_block(samples[f"{arm}{repeat}"][0], arm, repeat) for arm, repeat in times]
    return blocks, samples


def test_rows_take_medians_and_pair_by_repeat(make_sample: Make) -> None:
    times = {("sparse", 0): 0.5, ("dense", 0): 1.0, ("dense", 1): 2.0, ("sparse", 1): 1.0}
    blocks, samples = _measured(make_sample, times)
    dense, sparse = rows(blocks, "dense", samples, 2)
    assert (dense.arm, dense.ratio, dense.ratio_low, dense.ratio_high) == ("dense", 1.0, 1.0, 1.0)
    assert dense.tokens_per_s == pytest.approx((5 / 1.0 + 5 / 2.0) / 2)
    assert sparse.ratio == sparse.ratio_low == sparse.ratio_high == pytest.approx(2.0)
    assert sparse.bootstrap_low == sparse.bootstrap_high == pytest.approx(2.0)
    assert sparse.ttft_ratio == pytest.approx(1.0)
    assert sparse.tpot_ratio == pytest.approx(math.sqrt(0.45 / 0.95 * 0.95 / 1.95), abs=1e-4)
    assert sparse.ttft_p50_ms == sparse.ttft_p95_ms == pytest.approx(50.0)
    assert sparse.other_cpu_share == 0.01
    assert (sparse.repeats, sparse.requests, sparse.output_tokens) == (2, 2, 10)
    assert sparse.point == POINT


def test_a_load_that_is_not_complete_has_no_row(make_sample: Make) -> None:
    times = {(arm, repeat): 1.0 for arm in ("dense", "sparse") for repeat in (0, 1)}
    blocks, samples = _measured(make_sample, times)
    assert len(rows(blocks, "dense", samples, 2)) == 2
    assert rows(blocks[:-1], "dense", samples, 2) == []
    assert rows(blocks, "dense", samples, 3) == []
    failed = _block(_sample(make_sample, 1.0, "HTTP 429"), "sparse", 1)
    assert rows([*blocks[:-1], failed], "dense", samples, 2) == []
    assert rows([], "dense", {}, 2) == []


def test_failures_and_stalls_make_a_block_void(make_sample: Make) -> None:
    fine = _sample(make_sample, 1.0)
    assert problems([_block(fine, "dense", 0)]) == []
    (problem,) = problems([_block(_sample(make_sample, 1.0, "HTTP 429"), "dense", 0)])
    assert problem == "dense, 7/5 tokens, 1 at a time, repeat 1: 1 x HTTP 429"
    (problem,) = problems([_block(fine, "dense", 0, longest_silence_ms=20_000.0)])
    assert "the server stalled: 20.0 s without a token in any stream" in problem
    (problem,) = problems([_block(fine, "dense", 0, requests=0)])
    assert "no request was measured" in problem


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"client_cpu_share": 0.93}, "took 93% of a core (limit 85%)"),
        ({"client_lag_ms": {"p90": 9.0}}, "ran 9.0 ms late in one look of ten"),
    ],
)
def test_a_client_that_was_the_limit_is_told(
    make_sample: Make, changed: dict[str, Any], message: str
) -> None:
    fine = _sample(make_sample, 1.0)
    assert doubts([_block(fine, "dense", 0)]) == []
    (doubt,) = doubts([_block(fine, "dense", 0, **changed)])
    assert message in doubt


def test_late_sends_matter_in_an_open_loop_alone(make_sample: Make) -> None:
    closed = _block(_sample(make_sample, 1.0), "dense", 0, late_ms={"p90": 50.0})
    assert doubts([closed]) == []
    (doubt,) = doubts([dataclasses.replace(closed, point=LoadPoint("7/5", rate=4.0))])
    assert "sent 50 ms after it was due" in doubt
