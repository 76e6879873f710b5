from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.comparison import Block, paired_ratio, problems, rows, turns
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


def _block(make: Make, arm: str, repeat: int, e2e: float, error: str | None = None) -> Block:
    times = [0.05, e2e]
    sample = make(e2e_s=e2e, token_times_s=times, error=error)
    return Block(arm, 1, repeat, summarise([sample]), "f.jsonl", 0.01 * repeat, 0.0)


def test_rows_take_medians_and_pair_by_repeat(make_sample: Make) -> None:
    blocks = [
        _block(make_sample, "sparse", 0, 0.5),
        _block(make_sample, "dense", 0, 1.0),
        _block(make_sample, "dense", 1, 2.0),
        _block(make_sample, "sparse", 1, 1.0),
    ]
    dense, sparse = rows(blocks, "dense")
    assert (dense.arm, dense.ratio, dense.ratio_low, dense.ratio_high) == ("dense", 1.0, 1.0, 1.0)
    assert dense.tokens_per_s == pytest.approx((5 / 1.0 + 5 / 2.0) / 2)
    assert sparse.ratio == pytest.approx(2.0)
    assert sparse.ratio_low == pytest.approx(2.0)
    assert sparse.ttft_p50_ms == pytest.approx(50.0)
    assert sparse.other_cpu_share == 0.01
    assert (sparse.repeats, sparse.requests, sparse.output_tokens) == (2, 2, 10)


def test_failures_make_a_comparison_void(make_sample: Make) -> None:
    assert problems([_block(make_sample, "dense", 0, 1.0)]) == []
    (problem,) = problems([_block(make_sample, "dense", 0, 1.0, error="HTTP 429")])
    assert problem == "dense at concurrency 1, repeat 0: 1 x HTTP 429"
