from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.fake_server import event, token_event, usage_event
from loadtests.stream import StreamError, StreamRecord, read_stream


def _read(*pieces: bytes) -> StreamRecord:
    """Read the pieces with a clock that ticks once per line."""
    ticks = itertools.count(1)
    return read_stream(b"".join(pieces).split(b"\n"), StreamRecord(), lambda: float(next(ticks)))


def _usage(tokens: int) -> bytes:
    return usage_event(tokens) + b"data: [DONE]\n\n"


@pytest.mark.parametrize("body", [{}, {"messages": []}])
def test_reads_both_endpoints(body: dict[str, object]) -> None:
    record = _read(token_event(body, "a", None), token_event(body, "b", "length"), _usage(2))
    assert record.token_times == [1.0, 3.0]
    assert record.end_time == 3.0
    assert (record.prompt_tokens, record.completion_tokens) == (7, 2)
    assert record.finish_reason == "length"


def test_a_role_chunk_and_keep_alives_are_no_tokens() -> None:
    role = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    record = _read(role, b": still here\n\n", token_event({"messages": []}, "a", None), _usage(1))
    assert record.token_times == [5.0]


def test_a_last_chunk_without_text_ends_the_request() -> None:
    record = _read(token_event({}, "a", None), token_event({}, "", "length"), _usage(2))
    assert record.token_times == [1.0]
    assert record.end_time == 3.0


def test_cached_tokens_are_read() -> None:
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 8},
    }
    counted = event({"choices": [], "usage": usage})
    record = _read(token_event({}, "a", "stop"), counted, b"data: [DONE]\n\n")
    assert record.cached_tokens == 8


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ((token_event({}, "a", None),), r"without \[DONE\]"),
        ((token_event({}, "a", None), b"data: [DONE]\n\n"), "no usage"),
        ((b"data: {half\n\n",), "not JSON"),
        ((b"data: 7\n\n",), "not an object"),
        ((event({"choices": [{"index": 0}]}),), "not a completion chunk"),
        ((event({"choices": [], "usage": {"prompt_tokens": None}}),), "not a completion chunk"),
        ((event({"error": {"message": "out of memory"}}),), "server error.*out of memory"),
        ((_usage(1), token_event({}, "late", None)), r"after \[DONE\]"),
    ],
)
def test_broken_streams_are_errors(pieces: tuple[bytes, ...], message: str) -> None:
    with pytest.raises(StreamError, match=message):
        _read(*pieces)


def test_a_broken_stream_keeps_what_came_before() -> None:
    record = StreamRecord()
    with pytest.raises(StreamError):
        read_stream([token_event({}, "a", None).strip(), b"data: x"], record, lambda: 4.0)
    assert record.token_times == [4.0]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "usage", "error", "text", "delta", "prompt_tokens"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(st.binary(max_size=20) | _JSON.map(lambda v: b"data: " + json.dumps(v).encode())))
def test_no_input_raises_anything_else(lines: list[bytes]) -> None:
    with pytest.raises(StreamError):
        read_stream(lines, StreamRecord(), lambda: 0.0)
