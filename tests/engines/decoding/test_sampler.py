"""The sampler against a straightforward version of each rule."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.decoding.sampler import SequenceSampler, draw, logprobs_of, sample
from engines.native import kernels
from engines.sampling import SamplingParams

VOCAB = 50


def random_logits(seed: int, vocab: int = VOCAB) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=vocab) * 3).astype(np.float32)


def filtered_by_hand(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Probabilities after temperature, min-p, top-k, top-p, by sorting everything, in float64."""
    scaled = logits.astype(np.float64) / params.temperature
    probs = np.exp(scaled - scaled.max())
    probs[probs < params.min_p] = 0.0
    order = sorted(range(len(probs)), key=lambda i: (-probs[i], i))
    if params.top_k > 0:
        for i in order[params.top_k :]:
            probs[i] = 0.0
    probs /= probs.sum()
    total = 0.0
    for i in order:
        if total >= params.top_p:
            probs[i] = 0.0
        total += probs[i]
    return probs / probs.sum()


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.2, 3.0),
    top_k=st.sampled_from([0, -1, 1, 3, 20, 500]),
    top_p=st.sampled_from([1.0, 0.99, 0.7, 0.2, 0.001]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_draws_follow_the_filtered_distribution(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = random_logits(seed)
    probs = filtered_by_hand(logits, params)
    cumulative = np.cumsum(probs)
    for uniform in (0.001, 0.1, 0.35, 0.5, 0.77, 0.999999):
        edges = np.abs(cumulative - uniform)
        if edges.min() < 1e-5:
            continue  # float32 may fall on the other side
        expected = int(np.searchsorted(cumulative, uniform, side="right"))
        assert draw(logits, params, uniform) == expected


@pytest.mark.parametrize("top_p", [0.3, 0.999])
def test_the_shortcut_of_top_p_agrees_with_sorting_everything(top_p: float) -> None:
    params = SamplingParams(temperature=1.0, top_p=top_p)
    logits = random_logits(1, vocab=20_000)
    probs = filtered_by_hand(logits, params)
    cumulative = np.cumsum(probs)
    for uniform in np.linspace(0.001, 0.99, 40):
        expected = int(np.searchsorted(cumulative, uniform, side="right"))
        assert draw(logits, params, float(uniform)) == expected


def test_many_draws_have_the_right_frequencies() -> None:
    params = SamplingParams(temperature=0.8, top_p=0.9, seed=5)
    logits = random_logits(2, vocab=12)
    sampler = SequenceSampler(params, [1], frozenset())
    counts = np.zeros(12)
    for _ in range(4000):
        counts[sampler.choose(logits)] += 1
    assert np.abs(counts / 4000 - filtered_by_hand(logits, params)).max() < 0.03


def test_penalties_bias_and_min_tokens() -> None:
    params = SamplingParams(
        temperature=0.0,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        repetition_penalty=1.5,
        logit_bias={3: -100.0, 4: 1.0},
        min_tokens=4,
    )
    sampler = SequenceSampler(params, [0, 1, 1], frozenset({2}))
    logits = np.array([3.0, -1.0, 9.0, 50.0, 1.9, 2.0], np.float32)
    expected = []
    counts = [0] * 6
    for step in range(8):
        adjusted = logits.astype(np.float64).copy()
        if step < 4:
            adjusted[2] = -np.inf
        adjusted[3] += -100.0
        adjusted[4] += 1.0
        for i in range(6):
            if i in (0, 1) or counts[i]:
                adjusted[i] = adjusted[i] / 1.5 if adjusted[i] > 0 else adjusted[i] * 1.5
            if counts[i]:
                adjusted[i] -= 0.25 * counts[i] + 0.5
        token = int(np.argmax(adjusted))
        counts[token] += 1
        expected.append(token)
    before = logits.copy()
    found = [sample(logits[None], [sampler])[0].token_id for _ in range(8)]
    assert found == expected
    assert 2 in found[4:]
    np.testing.assert_array_equal(logits, before)


def test_a_seed_gives_the_same_tokens_whoever_else_is_in_the_batch() -> None:
    rows = np.stack([random_logits(i) for i in range(4)])
    params = [SamplingParams(temperature=1.0, seed=i) for i in range(4)]
    alone = []
    for i in range(4):
        sampler = SequenceSampler(params[i], [1], frozenset())
        alone.append([sample(rows[i : i + 1], [sampler])[0].token_id for _ in range(20)])
    samplers = [SequenceSampler(p, [1], frozenset()) for p in params]
    together: list[list[int]] = [[], [], [], []]
    for _ in range(20):
        for i, found in enumerate(sample(rows, samplers)):
            together[i].append(found.token_id)
    assert together == alone
    assert len({tuple(tokens) for tokens in alone}) == 4


def test_negative_and_huge_seeds_are_seeds_too() -> None:
    logits = random_logits(9)
    for seed in (-1, 2**80):
        runs = []
        for _ in range(2):
            params = SamplingParams(temperature=1.0, seed=seed)
            sampler = SequenceSampler(params, [1], frozenset())
            runs.append([sampler.choose(logits) for _ in range(10)])
        assert runs[0] == runs[1]


def test_logprobs_are_of_the_unmodified_distribution() -> None:
    logits = random_logits(4)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    params = SamplingParams(temperature=0.0, logit_bias={7: 100.0}, logprobs=5)
    (found,) = sample(logits[None], [SequenceSampler(params, [1], frozenset())])
    assert found.token_id == 7
    assert found.logprobs is not None
    assert found.logprobs.logprob == pytest.approx(exact[7], abs=1e-5)
    order = np.argsort(-exact)
    assert found.logprobs.rank == int(np.flatnonzero(order == 7)[0]) + 1
    assert [i for i, _ in found.logprobs.top] == list(order[:5])
    assert logprobs_of(logits, 7, 0).top == ()


def test_a_row_that_is_not_finite_fails_alone() -> None:
    rows = np.stack([random_logits(1), random_logits(2), random_logits(3)])
    rows[0, 5] = np.nan
    rows[2, 5] = np.inf
    params = SamplingParams(temperature=0.0)
    found = sample(rows, [SequenceSampler(params, [1], frozenset()) for _ in range(3)])
    assert [f.error is not None for f in found] == [True, False, True]


@settings(max_examples=100, deadline=None)
@given(
    logits=st.lists(st.sampled_from([-np.inf, -90.0, -1.0, 0.0, 0.5, 2.0]), min_size=1).filter(
        lambda values: max(values) > -np.inf
    ),
    repeat=st.sampled_from([1, 17, 300]),
    top_k=st.sampled_from([0, 1, 2, 7]),
    top_p=st.sampled_from([1.0, 0.6]),
    uniform=st.sampled_from([0.0, 0.31, 0.62, 0.999999999999]),
)
def test_forbidden_and_equal_tokens(logits, repeat, top_k, top_p, uniform) -> None:
    """Equal ones count in order of their number, and what is forbidden is never drawn."""
    row = np.array(logits * repeat, np.float32)
    params = SamplingParams(temperature=1.0, top_k=top_k, top_p=top_p)
    token = draw(row, params, uniform)
    assert row[token] > -np.inf
    probs = filtered_by_hand(row, params)
    cumulative = np.cumsum(probs)
    if uniform < 0.9 and np.abs(cumulative - uniform).min() > 1e-5:
        near_edge = top_p < 1 and np.abs(np.cumsum(np.sort(probs)[::-1]) - top_p).min() < 1e-3
        if not near_edge:
            assert token == int(np.searchsorted(cumulative, uniform, side="right"))


@pytest.mark.parametrize("isa", kernels.supported_isas())
def test_every_instruction_set_draws_the_same(isa: str) -> None:
    """In a process that is forced to one: draws of many sizes, temperatures and filters."""
    code = (
        "import sys\nsys.path.insert(0, sys.argv[1])\n"
        "from tests.engines.decoding.test_sampler import drawn\nprint(drawn())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parents[3])],
        env={**os.environ, "TWOFOUR_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(drawn())


def test_settings_at_their_limits() -> None:
    logits = random_logits(3)
    likeliest = int(logits.argmax())
    for params in (
        SamplingParams(temperature=1.0, top_k=2**63),
        SamplingParams(temperature=1e-46),
        SamplingParams(temperature=1.0, top_p=5e-324),
    ):
        (found,) = sample(logits[None], [SequenceSampler(params, [1], frozenset())])
        assert found.error is None
        if params.top_k <= 0:
            assert found.token_id == likeliest
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature=temperature, repetition_penalty=1e-40)
        sampler = SequenceSampler(params, [likeliest], frozenset())
        assert sample(logits[None], [sampler])[0].token_id == likeliest
        params = SamplingParams(temperature=temperature, min_tokens=1)
        sampler = SequenceSampler(params, [1], frozenset({0}))
        only = np.full(5, -np.inf, np.float32)
        only[0] = 1.0
        (found,) = sample(only[None], [sampler])
        assert found.token_id == -1
        assert found.invalid
        assert "no token may follow" in str(found.error)


def drawn() -> list[int]:
    """Tokens of a fixed set of draws."""
    found = []
    for vocab in (1, 15, 16, 17, 255, 1000, 49_152):
        logits = random_logits(vocab, vocab)
        for settings_ in ({}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1, "temperature": 2.0}):
            params = SamplingParams(**{"temperature": 0.7, **settings_})
            found += [draw(logits, params, uniform) for uniform in (0.0, 0.4, 0.9)]
    return found
