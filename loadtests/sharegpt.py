"""Prompts of a ShareGPT file: the first question of every conversation, answers as long as its own.

The file is a JSON list of `{"id": ..., "conversations": [{"from": "human", "value": ...}, {"from":
"gpt", "value": ...}, ...]}`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loadtests.prompts import LoadPrompt

CHARACTERS_PER_TOKEN = 4
"""English text; answers need a length, not an exact one, and every arm gets the same."""

LONGEST_CHARACTERS = 1024 * CHARACTERS_PER_TOKEN
_SHORTEST_CHARACTERS = 4 * CHARACTERS_PER_TOKEN


def read_sharegpt(path: Path) -> list[LoadPrompt]:
    """Conversations that begin with a question and its answer, of 4 to 1,024 tokens or so each.

    Raises:
        ValueError: not such a file, or no such conversation in it.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of conversations, as ShareGPT's files are")
    found = [prompt for number, row in enumerate(rows) if (prompt := _prompt(row, number))]
    if not found:
        raise ValueError(
            f"{path} holds no conversation of a question and an answer of "
            f"{_SHORTEST_CHARACTERS} to {LONGEST_CHARACTERS} characters"
        )
    return found


def _prompt(row: Any, number: int) -> LoadPrompt | None:
    try:
        question, answer = row["conversations"][:2]
        if (question["from"], answer["from"]) != ("human", "gpt"):
            return None
        texts = question["value"].strip(), answer["value"].strip()
    except (KeyError, TypeError, ValueError, AttributeError):
        return None  # also of a single turn: real files have many
    if not all(_SHORTEST_CHARACTERS <= len(text) <= LONGEST_CHARACTERS for text in texts):
        return None
    tokens = round(len(texts[1]) / CHARACTERS_PER_TOKEN)
    return LoadPrompt(id=str(row.get("id", number)), text=texts[0], max_tokens=tokens)
