"""TensorRT's sparsity report, in the wording of both generations."""

from __future__ import annotations

import pytest

from engines.tensorrt_llm.sparsity_log import TacticCount, parse_log

STAMP = "[11/22/2026-03:00:00] [TRT] [V] "
DONE = "[11/22/2026-03:00:00] [TRT-LLM] [I] Total time of building Unnamed Network 0: 00:00:41\n"
ALL_DONE = "[11/22/2026-03:00:00] [TRT-LLM] [I] Total time of building all engines: 00:01:22\n"


def _new(eligible: int, chosen: int) -> str:
    return (
        f"{STAMP}(Sparsity) Found {eligible} layer(s) eligible to use sparse tactics\n"
        f"{STAMP}(Sparsity) Chose {chosen} layer(s) using sparse tactics\n"
    )


def _old(eligible: str, chosen: str) -> str:
    return (
        f"{STAMP}(Sparsity) Layers eligible for sparse math: {eligible}\n"
        f"{STAMP}(Sparsity) TRT inference plan picked sparse implementation for layers: {chosen}\n"
    )


@pytest.mark.parametrize(
    ("text", "eligible", "chosen"),
    [
        (_new(196, 140), 196, 140),
        (_new(39, 0), 39, 0),
        (_new(0, 0), 0, 0),
        (_old("conv1, conv2, conv3", "conv2, conv3"), 3, 2),
        (_old("MatMul_401, Conv_619 + Relu_620, Conv_622", ""), 3, 0),
        (_old("", ""), 0, 0),
        (_old("qkv[0,1], dense(a, b) + bias", "qkv[0,1]"), 2, 1),
        (_new(4, 4).replace("tactics\n", "tactics: a, b, c, d\n"), 4, 4),
    ],
)
def test_counts(text: str, eligible: int, chosen: int) -> None:
    report = parse_log(text.splitlines())
    assert report.reported
    assert (report.eligible, report.chosen) == (eligible, chosen)


def test_the_last_pass_counts() -> None:
    report = parse_log((_new(8, 0) + "other\n" + _new(8, 5) + DONE).splitlines())
    assert report.ranks == (TacticCount(8, 5),)


@pytest.mark.parametrize("pair", [_new(6, 2), _old("a, b, c, d, e, f", "a, b")])
def test_ranks_are_told_apart_and_summed(pair: str) -> None:
    report = parse_log((pair + DONE + pair + DONE + ALL_DONE).splitlines())
    assert report.ranks == (TacticCount(6, 2), TacticCount(6, 2))
    assert (report.eligible, report.chosen) == (12, 4)


def test_a_rank_with_no_report_counts_nothing() -> None:
    report = parse_log((_new(6, 2) + DONE + DONE).splitlines())
    assert report.ranks == (TacticCount(6, 2), TacticCount())
    assert (report.eligible, report.chosen) == (6, 2)


@pytest.mark.parametrize("text", ["", "sparsity\n(Sparsity) nothing known\n", DONE + ALL_DONE])
def test_a_log_without_the_report_says_nothing(text: str) -> None:
    report = parse_log(text.splitlines())
    assert not report.reported


@pytest.mark.parametrize(
    "line",
    [
        "(Refit + Sparsity): Refitting failed as the dense weights provided for the sparse layer.",
        "(Sparsity) Please provide sparse weights if you want to refit layer qkv",
    ],
)
def test_a_refused_refit_is_noticed(line: str) -> None:
    assert parse_log([STAMP + line]).refit_refused
    assert not parse_log(_new(1, 1).splitlines()).refit_refused
