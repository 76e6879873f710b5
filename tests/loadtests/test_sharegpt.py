from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadtests.sharegpt import read_sharegpt


def _talk(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"id": "x", "conversations": [{"from": who, "value": text} for who, text in turns]}


def test_first_questions_with_the_length_of_their_answers(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    question, answer = "Why is the sky blue?", "a" * 200
    odd: list[Any] = [
        _talk(("human", question)),
        _talk(("gpt", answer), ("human", question)),
        _talk(("human", "Hi"), ("gpt", answer)),
        _talk(("human", question), ("gpt", "b" * 9000)),
        {"id": "none"},
        7,
    ]
    path.write_text(json.dumps([*odd, _talk(("human", question), ("gpt", answer))]))
    (prompt,) = read_sharegpt(path)
    assert (prompt.id, prompt.text, prompt.max_tokens) == ("x", question, 50)


@pytest.mark.parametrize("content", ["{", "{}", "[]", "[1]"])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"s\.json"):
        read_sharegpt(path)
