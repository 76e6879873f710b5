from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadtests.prompt_source import TracePrompts
from loadtests.random_prompts import Vocabulary
from loadtests.trace import TraceRequest, read_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:04.9799600,374,44
2023-11-16 18:17:03.9799600,396,109
2023-11-16 18:18:03.4799600,879,0
"""
VOCABULARY = Vocabulary(("a", "b"), tuple("abcdefgh"), added=2)


def _mooncake(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_azure_traces(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    assert read_trace(path) == [
        TraceRequest(0.0, 396, 109),
        TraceRequest(pytest.approx(1.0), 374, 44),
        TraceRequest(pytest.approx(59.5), 879, 1),
    ]
    fast = read_trace(path, speed=10.0, lengths=0.1)
    assert [r.due_s for r in fast] == pytest.approx([0.0, 0.1, 5.95])
    assert [(r.prompt_tokens, r.output_tokens) for r in fast] == [(40, 11), (37, 4), (88, 1)]


def test_times_with_a_zone_are_the_same_times(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 02:00:00.009930+02:00,5,5\n2024-05-10 00:00:01.009930+00:00,6,6\n"
    )
    assert [r.due_s for r in read_trace(path)] == pytest.approx([0.0, 1.0])


def test_mooncake_traces_share_what_they_call_the_same(tmp_path: Path) -> None:
    path = _mooncake(
        tmp_path / "m.jsonl",
        {"timestamp": 1000, "input_length": 1100, "output_length": 7, "hash_ids": [1, 2, 3]},
        {"timestamp": 3000, "input_length": 1030, "output_length": 5, "hash_ids": [1, 2, 4]},
        {"timestamp": 2000, "input_length": 30, "output_length": 5},
    )
    trace = read_trace(path)
    assert [r.due_s for r in trace] == [0.0, 1.0, 2.0]
    source = TracePrompts(VOCABULARY, trace, warmup=1, seed=0)
    prompts = [source.prompt(index, None) for index in (1, 2, 3)]
    assert [p.id for p in prompts] == ["trace-0", "trace-1", "trace-2"]
    words = [p.text.split() for p in prompts]
    assert [len(w) + VOCABULARY.added for w in words] == [1100, 30, 1030]
    assert [(p.prompt_tokens, p.max_tokens) for p in prompts] == [(1100, 7), (30, 5), (1030, 5)]
    assert words[0][:1024] == words[2][:1024]
    assert words[0][1024:1028] != words[2][1024:1028]
    assert source.prompt(0, None).id == "trace-2", "warm-up takes lengths of the trace"


def test_scaled_blocks_are_shared_as_far_as_they_reach(tmp_path: Path) -> None:
    rows = [
        {"timestamp": i, "input_length": 1100, "output_length": 7, "hash_ids": [1, i + 2]}
        for i in range(2)
    ]
    trace = read_trace(_mooncake(tmp_path / "m.jsonl", *rows), lengths=1 / 8)
    source = TracePrompts(VOCABULARY, trace, warmup=0, seed=0)
    first, second = (source.prompt(index, None).text.split() for index in (0, 1))
    assert len(first) == round(1100 / 8) - VOCABULARY.added
    assert first[:64] == second[:64]
    assert first[64:72] != second[64:72]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", "", "holds no request"),
        ("t.jsonl", "{}\n", r"t\.jsonl:1: expected an object with timestamp"),
        ("t.jsonl", '{"timestamp": 0, "input_length": -4, "output_length": 1}\n', "length of -4"),
        ("t.csv", "a,b\n1,2\n", "no column ContextTokens"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nx,1,1\n", r"t\.csv:2"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_trace(path)


def test_factors_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trace speed 0"):
        read_trace(tmp_path / "t.csv", speed=0)
