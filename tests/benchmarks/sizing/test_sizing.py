"""The model of a replica against closed forms and by hand, its fit, and how loads are measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.sizing.fit import decode_gap, fit_costs
from benchmarks.sizing.page import sizing_page
from benchmarks.sizing.replica_model import (
    BatchLimits,
    Job,
    StepCosts,
    highest_rate,
    quantile,
    simulate,
)
from benchmarks.sizing.workload import Lengths, poisson_jobs

COSTS = StepCosts(fixed=0.010, per_sequence=0.002, per_prompt_token=0.001, outside=0.003)
ONE_AT_A_TIME = BatchLimits(sequences=1)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_at_a_time_it_is_an_m_d_1_queue(load: float) -> None:
    service = 0.02  # one step: a prompt of ten tokens, and a single token as the answer
    jobs = [Job(job.arrival, 10, 1) for job in poisson_jobs(load / service, 40_000, 3, Lengths())]
    waited = np.array(simulate(jobs, COSTS, limits=ONE_AT_A_TIME)) - service - COSTS.outside
    # Pollaczek-Khinchine with constant service.
    assert waited.mean() == pytest.approx(load * service / (2 * (1 - load)), rel=0.06)


def test_steps_by_hand() -> None:
    jobs = [Job(0.0, 10, 3), Job(0.001, 20, 1), Job(0.5, 600, 1)]
    first, second, long = simulate(jobs, COSTS)
    # The first step is the first prompt alone; the second job waits for it, then shares a step
    # with a decoding sequence.
    assert first == pytest.approx(0.020 + 0.003)
    assert second == pytest.approx(0.020 + 0.010 + 0.002 + 0.020 - 0.001 + 0.003)
    # 512 and 88 tokens, in two steps.
    assert long == pytest.approx(2 * 0.010 + 0.600 + 0.003)
    mixed = simulate([Job(0.0, 1, 99), Job(0.001, 300, 1)], COSTS)
    # 256 and 44 tokens beside a decoding sequence.
    assert mixed[1] == pytest.approx(0.011 + 2 * 0.012 + 0.300 - 0.001 + 0.003)


def test_replicas_share_the_requests() -> None:
    at_once = [Job(0.0, 10, 1) for _ in range(4)]
    assert simulate(at_once, COSTS, replicas=4) == pytest.approx([0.023] * 4)
    one = simulate(at_once, COSTS, limits=ONE_AT_A_TIME)
    assert one == pytest.approx([0.023, 0.043, 0.063, 0.083])
    unit = poisson_jobs(1.0, 1500, 1, Lengths())
    single, double = (highest_rate(unit, COSTS, n, 0.4) for n in (1, 2))
    assert 1.9 * single < double < 3 * single
    with pytest.raises(ValueError, match="more than an idle replica does"):
        highest_rate(unit, COSTS, 1, 0.01)


@pytest.mark.parametrize("jobs", [[Job(1.0, 1, 1), Job(0.5, 1, 1)], [Job(0.0, 0, 1)]])
def test_jobs_that_cannot_be(jobs: list[Job]) -> None:
    with pytest.raises(ValueError, match="out of order or empty"):
        simulate(jobs, COSTS)


def test_the_fit_finds_the_costs_again() -> None:
    first = {prompt: simulate([Job(0.0, prompt, 1)], COSTS)[0] for prompt in (32, 64, 96)}
    gaps = {batch: COSTS.fixed + batch * COSTS.per_sequence for batch in (1, 4, 12)}
    fitted = fit_costs(first, gaps)
    assert fitted.fixed == pytest.approx(COSTS.fixed)
    assert fitted.per_sequence == pytest.approx(COSTS.per_sequence)
    assert fitted.per_prompt_token == pytest.approx(COSTS.per_prompt_token)
    assert fitted.outside == pytest.approx(COSTS.outside)
    with pytest.raises(ValueError, match="two points make a line, not 1"):
        fit_costs({32: 0.1}, gaps)
    with pytest.raises(ValueError, match="prompts cost nothing"):
        fit_costs({32: 0.1, 96: 0.02}, gaps)
    early = {prompt: seconds - 0.005 for prompt, seconds in first.items()}
    assert fit_costs(early, gaps).outside == 0


def test_gaps_count_while_all_answers_are_under_way() -> None:
    assert decode_gap([[0.0, 1.0, 3.0, 5.0, 6.0], [1.0, 3.0, 5.0]]) == 2.0
    with pytest.raises(ValueError, match="too short"):
        decode_gap([[0.0, 1.0], [2.0, 3.0]])


def test_quantiles_and_arrivals() -> None:
    values = [3.0, 1.0, 2.0, 5.0]
    for share in (0.0, 0.3, 0.5, 0.95, 1.0):
        assert quantile(values, share) == pytest.approx(np.quantile(values, share))
    jobs = poisson_jobs(5.0, 4000, 7, Lengths((3, 5), (1, 1)))
    assert jobs == poisson_jobs(5.0, 4000, 7, Lengths((3, 5), (1, 1)))
    assert jobs[-1].arrival == pytest.approx(800, rel=0.1)
    assert {job.prompt for job in jobs} == {3, 4, 5}
    assert Lengths(output=(8, 24)).mean_output == 16


def test_the_model_predicts_loads_that_it_was_not_fitted_to() -> None:
    path = Path(__file__).parents[3] / "docs" / "results" / "sizing.json"
    result: dict[str, Any] = json.loads(path.read_text())
    assert len(result["rows"]) == 2
    for row in result["rows"]:
        assert abs(row["p50_error"]) < 0.25
        assert abs(row["p95_error"]) < 0.25
    assert sizing_page(result) == path.with_suffix(".md").read_text()
