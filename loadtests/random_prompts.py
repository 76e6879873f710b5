"""Prompts of exactly so many tokens, of random words, for any server and without its tokenizer.

The server itself is asked how many tokens words have (`usage.prompt_tokens`): words that are one
token each are kept, and a prompt of n tokens is n of them, less what the server adds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_FIRST_WORDS = 8
_FEWEST_WORDS = 16


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Words that are one token each to a server.

    Attributes:
        first: words that are one token at the beginning of a prompt, too.
        words: words that are one token behind a space.
        added: tokens that the server adds to every prompt.
    """

    first: tuple[str, ...]
    words: tuple[str, ...]
    added: int

    def text(self, tokens: int, seed: str) -> str:
        """A prompt that the server counts as `tokens`; the same for the same seed.

        Raises:
            ValueError: so few that what the server adds leaves no room for a word.
        """
        if tokens <= self.added:
            raise ValueError(
                f"a prompt of {tokens} tokens: the server adds {self.added} to every prompt, ask "
                f"for at least {self.added + 1}"
            )
        return self.words_of(tokens - self.added, seed)

    def words_of(self, count: int, seed: str) -> str:
        """`count` words, of which the first may begin a prompt."""
        rng = random.Random(seed)
        rest = rng.choices(self.words, k=count - 1)
        return " ".join([rng.choice(self.first), *rest])


def fit_vocabulary(count_tokens: Callable[[str], int], words: Sequence[str]) -> Vocabulary:
    """The words of `words` that are one token each; asks about a dozen times if most are.

    Args:
        count_tokens: how many tokens the server makes of a prompt.
        words: candidates.

    Raises:
        ValueError: hardly any word is one token to this server.
    """
    counts = {word: count_tokens(word) for word in words[:_FIRST_WORDS]}
    least = min(counts.values())
    first = tuple(word for word, count in counts.items() if count == least)

    def single(group: Sequence[str]) -> list[str]:
        if count_tokens(" ".join([first[0], *group])) == least + len(group):
            return list(group)
        if len(group) == 1:
            return []
        half = len(group) // 2
        return single(group[:half]) + single(group[half:])

    found = set(single(words))
    if len(found) < _FEWEST_WORDS:
        raise ValueError(
            f"only {len(found)} of {len(words)} common words are one token to this server: prompts "
            "of an exact length need its language; use --prompts"
        )
    both = tuple(word for word in first if word in found)
    if not both:
        raise ValueError("no word is one token both first and behind a space: use --prompts")
    return Vocabulary(both, tuple(word for word in words if word in found), least - 1)
