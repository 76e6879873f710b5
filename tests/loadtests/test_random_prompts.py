"""Prompts of an exact length, against tokenizers that count otherwise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.prompts import COMMON_WORDS
from loadtests.random_prompts import fit_vocabulary

ODD = {"mountain", "horse", "perhaps"}


class _Tokenizer:
    """Adds `added` tokens; odd words are two, and so is `time` at the beginning."""

    def __init__(self, added: int) -> None:
        self.added = added
        self.asked = 0

    def __call__(self, text: str) -> int:
        self.asked += 1
        words = text.split()
        odd = sum(word in ODD for word in words) + (words[0] == "time")
        return self.added + len(words) + odd


@given(added=st.integers(0, 30), length=st.integers(1, 300), seed=st.integers(0, 99))
def test_prompts_are_as_long_as_the_server_counts(added: int, length: int, seed: int) -> None:
    count = _Tokenizer(added)
    vocabulary = fit_vocabulary(count, COMMON_WORDS)
    assert vocabulary.added == added
    assert not ODD & set(vocabulary.words)
    assert "time" not in vocabulary.first
    text = vocabulary.text(added + length, f"s:{seed}")
    assert count(text) == added + length
    assert text == vocabulary.text(added + length, f"s:{seed}")


def test_few_questions_are_enough() -> None:
    count = _Tokenizer(1)
    fit_vocabulary(count, [word for word in COMMON_WORDS if word not in ODD])
    assert count.asked == 9


def test_what_cannot_be_is_refused() -> None:
    vocabulary = fit_vocabulary(_Tokenizer(12), COMMON_WORDS)
    with pytest.raises(ValueError, match="ask for at least 13"):
        vocabulary.text(12, "s")
    with pytest.raises(ValueError, match=r"only 0 of \d+ common words"):
        fit_vocabulary(lambda text: 3 * len(text.split()), COMMON_WORDS)
