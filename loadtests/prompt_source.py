"""What request number so-and-so says: from a pool of prompts, random words, or a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from loadtests.prompts import LoadPrompt, salted
from loadtests.random_prompts import Vocabulary
from loadtests.trace import TraceRequest


class PromptSource(Protocol):
    """Gives every request its prompt; the same for the same seed and index, in whatever order."""

    def prompt(self, index: int, mask: str | None) -> LoadPrompt:
        """The prompt of request `index`, which asks for `mask`."""


@dataclass(frozen=True, slots=True)
class PromptPool:
    """Prompts in turn, those of a mask for requests that ask for it.

    Attributes:
        prompts: of requests whose mask has none of its own.
        by_mask: mask -> its prompts.
        seed: fixes the salts; None for none.
    """

    prompts: Sequence[LoadPrompt]
    by_mask: Mapping[str, Sequence[LoadPrompt]]
    seed: int | None

    def prompt(self, index: int, mask: str | None) -> LoadPrompt:
        """The next of its pool, behind words of its own if the pool is salted."""
        pool = self.by_mask.get(mask or "", self.prompts)
        chosen = pool[index % len(pool)]
        return chosen if self.seed is None else salted(chosen, self.seed, index)


@dataclass(frozen=True, slots=True)
class RandomPrompts:
    """Prompts of one length, each of other words.

    Attributes:
        vocabulary: what they are made of.
        tokens: how long each is, by the server's count.
        seed: fixes the words.
    """

    vocabulary: Vocabulary
    tokens: int
    seed: int

    def prompt(self, index: int, mask: str | None) -> LoadPrompt:
        """Words that no other request has."""
        text = self.vocabulary.text(self.tokens, f"prompt:{self.seed}:{index}")
        return LoadPrompt(f"random-{index}", text, prompt_tokens=self.tokens)


@dataclass(frozen=True, slots=True)
class TracePrompts:
    """Prompts as long as a trace has them; blocks that it calls the same are the same words.

    Attributes:
        vocabulary: what they are made of.
        trace: the requests.
        warmup: requests before the trace's first, which get the lengths of its last ones.
        seed: fixes the words.
    """

    vocabulary: Vocabulary
    trace: Sequence[TraceRequest]
    warmup: int
    seed: int

    def prompt(self, index: int, mask: str | None) -> LoadPrompt:
        """Of the trace's request that it stands for."""
        number = (index - self.warmup) % len(self.trace)
        request = self.trace[number]
        tokens = max(request.prompt_tokens, self.vocabulary.added + 1)
        return LoadPrompt(
            f"trace-{number}",
            self._text(index, request, tokens - self.vocabulary.added),
            max_tokens=request.output_tokens,
            prompt_tokens=tokens,
        )

    def _text(self, index: int, request: TraceRequest, words: int) -> str:
        parts = []
        for block in request.blocks:
            if words <= 0:
                break
            text = self.vocabulary.words_of(request.block_tokens, f"block:{self.seed}:{block}")
            parts += text.split()[:words]
            words -= request.block_tokens
        if words > 0:
            parts.append(self.vocabulary.words_of(words, f"prompt:{self.seed}:{index}"))
        return " ".join(parts)
