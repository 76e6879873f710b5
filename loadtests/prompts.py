"""Prompts for load tests: from a file, or a small synthetic set that needs none."""

from __future__ import annotations

import dataclasses
import json
import random
from dataclasses import dataclass
from pathlib import Path

_COMMON_WORDS = """
time people way water day part sound work place year back thing name sentence man line boy farm
end men land home hand picture animal mother house world page letter point city tree night story
life paper group music river mountain field horse color face wood plan figure star box noun
ground king size heart summer winter record boat common gold possible plane age dry wonder laugh
ago ran check game shape yes hot miss brought heat snow bed bring sit perhaps fill east weight
language among
"""
COMMON_WORDS = _COMMON_WORDS.split()

_SALT_WORDS = 6


@dataclass(frozen=True, slots=True)
class LoadPrompt:
    """A text to continue.

    Attributes:
        id: what raw samples call it.
        text: the prompt.
        max_tokens: tokens to generate, if it has a length of its own.
        prompt_tokens: how long the server must find it, if that is known.
    """

    id: str
    text: str
    max_tokens: int | None = None
    prompt_tokens: int | None = None


def synthetic_prompts(words: int, *, count: int = 32, seed: int = 0) -> list[LoadPrompt]:
    """`count` prompts of `words` common English words each; the same ones for the same seed.

    Most tokenizers make one token of each word; what a run really sent is in its samples.
    """
    if words < 1:
        raise ValueError(f"a prompt of {words} words is empty: ask for at least 1")
    rng = random.Random(f"prompts:{seed}")
    return [
        LoadPrompt(id=f"synthetic-{i}", text=" ".join(rng.choices(COMMON_WORDS, k=words)))
        for i in range(count)
    ]


def load_prompts(path: Path) -> list[LoadPrompt]:
    """Prompts of a text file, a line each, or of `*.jsonl`, an object each.

    An object has a `prompt`, and maybe an `id`, and `max_tokens` if it has a length of its own.

    Raises:
        ValueError: no prompt in it, or a line that is not what its name promises.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    jsonl = path.suffix == ".jsonl"
    prompts = [
        _from_json(line, f"{path}:{number}") if jsonl else LoadPrompt(f"line-{number}", line)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise ValueError(f"{path} holds no prompt")
    return prompts


def salted(prompt: LoadPrompt, seed: int, index: int) -> LoadPrompt:
    """The prompt behind words that no other request of the run starts with.

    A prefix cache that has seen the prompt before can then reuse nothing of it. Words, not hex
    digits, so that every salt costs nearly the same number of tokens.
    """
    return dataclasses.replace(prompt, text=f"{salt(seed, index)} {prompt.text}")


def salt(seed: int, index: int) -> str:
    """The salt of request `index` of a run with `seed`: the same in every arm that is compared."""
    rng = random.Random(f"salt:{seed}:{index}")
    return " ".join(rng.choices(COMMON_WORDS, k=_SALT_WORDS))


def _from_json(line: str, where: str) -> LoadPrompt:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    text = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text:
        raise ValueError(f'{where}: expected an object with a non-empty text "prompt"')
    max_tokens = row.get("max_tokens")
    if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
        raise ValueError(f"{where}: max_tokens is {max_tokens!r}, expected a number from 1")
    return LoadPrompt(id=str(row.get("id", where)), text=text, max_tokens=max_tokens)
