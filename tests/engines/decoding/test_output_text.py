"""Stop strings, end-of-sequence tokens and limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.decoding.output_text import ChoiceText, TextDelta
from engines.sampling import SamplingParams

EOS = 99


class Letters:
    """Decodes token 0 as 'a', 1 as 'b', ...; EOS as nothing."""

    def push(self, token_id: int) -> str:
        return "" if token_id == EOS else chr(ord("a") + token_id)

    def flush(self) -> str:
        return ""


def run(
    text: str, params: SamplingParams, *, max_tokens: int = 100, eos: bool = False
) -> tuple[list[str], TextDelta]:
    choice = ChoiceText(Letters(), params, (EOS,), max_tokens)  # type: ignore[arg-type]
    pieces = []
    for token in [*(ord(c) - ord("a") for c in text), *([EOS] if eos else [])]:
        pieces.append(choice.push(token))
        if pieces[-1].finish_reason:
            break
    return [p.text for p in pieces], pieces[-1]


def test_text_that_may_become_a_stop_string_is_held_back() -> None:
    texts, last = run("xabyabc", SamplingParams(stop=("abc",)))
    assert texts == ["x", "", "", "aby", "", "", ""]
    assert (last.finish_reason, last.stop_reason) == ("stop", "abc")


def test_the_stop_string_can_be_included() -> None:
    texts, last = run("xabcd", SamplingParams(stop=("bc",), include_stop_str_in_output=True))
    assert "".join(texts) == "xabc"
    assert last.finish_reason == "stop"


def test_the_earliest_of_several_stop_strings_wins() -> None:
    texts, last = run("aabab", SamplingParams(stop=("bab", "ab")))
    assert "".join(texts) == "a"
    assert last.stop_reason == "ab"


def test_held_text_comes_out_at_the_end() -> None:
    texts, last = run("xab", SamplingParams(stop=("abc",)), max_tokens=3)
    assert texts == ["x", "", "ab"]
    assert last.finish_reason == "length"
    texts, last = run("xab", SamplingParams(stop=("abc",)), eos=True)
    assert "".join(texts) == "xab"
    assert (last.finish_reason, last.stop_reason) == ("stop", None)


def test_stop_tokens_and_ignored_eos() -> None:
    texts, last = run("abcd", SamplingParams(stop_token_ids=(2,)))
    assert ("".join(texts), last.stop_reason) == ("ab", 2)
    texts, _ = run("abcd", SamplingParams(stop_token_ids=(2,), include_stop_str_in_output=True))
    assert "".join(texts) == "abc"
    texts, last = run("ab", SamplingParams(ignore_eos=True), eos=True)
    assert last.finish_reason is None


def test_stop_strings_count_only_after_min_tokens() -> None:
    texts, last = run("ababab", SamplingParams(stop=("ab",), min_tokens=3, max_tokens=9))
    assert "".join(texts) == "ab"
    assert last.stop_reason == "ab"


@given(text=st.text("abc", min_size=1, max_size=30), stop=st.text("abc", min_size=1, max_size=4))
def test_streamed_text_equals_cutting_the_whole(text: str, stop: str) -> None:
    texts, last = run(text, SamplingParams(stop=(stop,)), max_tokens=len(text))
    place = text.find(stop)
    assert "".join(texts) == (text if place < 0 else text[:place])
    assert last.finish_reason == ("length" if place < 0 else "stop")


@pytest.mark.parametrize("finished", [True, False])
def test_a_finished_constraint_ends_the_choice(finished: bool) -> None:
    choice = ChoiceText(Letters(), SamplingParams(), (EOS,), 10)  # type: ignore[arg-type]
    piece = choice.push(0, constraint_finished=finished)
    assert piece.finish_reason == ("stop" if finished else None)


@pytest.mark.parametrize("ending", ["length", "eos", "constraint"])
def test_an_incomplete_character_shows_at_the_end(ending: str) -> None:
    class Incomplete(Letters):
        def flush(self) -> str:
            return "\ufffd"

    choice = ChoiceText(Incomplete(), SamplingParams(), (EOS,), 3 if ending == "length" else 9)  # type: ignore[arg-type]
    pieces = [choice.push(0), choice.push(1)]
    pieces.append(choice.push(EOS if ending == "eos" else 2, constraint_finished=ending[0] == "c"))
    assert (
        "".join(piece.text for piece in pieces) == ("ab" if ending == "eos" else "abc") + "\ufffd"
    )
    assert pieces[-1].finish_reason == ("length" if ending == "length" else "stop")
