from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests.samples import RequestSample, SampleWriter, judge, read_samples

Make = Callable[..., RequestSample]


def test_latencies_of_known_times(make_sample: Make) -> None:
    sample = make_sample()
    assert sample.tpot_s == pytest.approx(0.01)
    assert sample.gaps_s == pytest.approx([0.01] * 4)


def test_tpot_counts_tokens_by_usage_not_by_chunks(make_sample: Make) -> None:
    sample = make_sample(token_times_s=[0.05, 0.09], completion_tokens=5)
    assert sample.tpot_s == pytest.approx(0.01)


@pytest.mark.parametrize("changed", [{"completion_tokens": 1}, {"e2e_s": None}, {"ttft_s": None}])
def test_no_tpot_without_two_tokens(make_sample: Make, changed: dict[str, object]) -> None:
    assert make_sample(**changed).tpot_s is None


def test_wrong_token_count_is_an_error(make_sample: Make) -> None:
    assert judge(make_sample(), None) is None
    message = judge(make_sample(completion_tokens=3, finish_reason="stop"), None)
    assert message == "generated 3 tokens, not 5 (finish reason stop)"
    assert judge(make_sample(), 8) == "the prompt has 7 tokens, not 8"
    assert judge(make_sample(e2e_s=None), 7) == "the stream held no choice"


def test_samples_round_trip(make_sample: Make, tmp_path: Path) -> None:
    samples = [make_sample(index=i, mask="french", error="x" if i else None) for i in range(3)]
    writer = SampleWriter(tmp_path / "new" / "s.jsonl")
    for sample in samples:
        writer.write(sample)
    writer.close()
    assert read_samples(tmp_path / "new" / "s.jsonl") == samples


def test_samples_are_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text("precious")
    with pytest.raises(FileExistsError):
        SampleWriter(path)
    assert path.read_text() == "precious"


def test_bad_lines_name_their_place(make_sample: Make, tmp_path: Path) -> None:
    row = dataclasses.asdict(make_sample())
    path = tmp_path / "s.jsonl"
    for bad, message in (
        ("{", "not JSON"),
        ("[]", "schema 1"),
        (json.dumps(row | {"schema": 2}), "schema 1"),
        (json.dumps(row | {"extra": 1}), "extra"),
        (json.dumps({k: v for k, v in row.items() if k != "status"}), "status"),
    ):
        path.write_text(make_sample().to_json() + "\n" + bad + "\n")
        with pytest.raises(ValueError, match=rf"s\.jsonl:2.*{message}"):
            read_samples(path)
