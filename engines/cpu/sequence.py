"""One sequence (one choice of a request) while the engine has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from engines.base import GenerationChunk, TokenLogprobs
from engines.cpu.kv_pages import extend_chain
from engines.cpu.masks import Variant
from engines.cpu.model import PAGE_POSITIONS
from engines.decoding.output_text import ChoiceText
from engines.decoding.sampler import SequenceSampler

Deliver = Callable[[GenerationChunk], None]


@dataclass(eq=False)
class Sequence:
    """State of one sequence.

    Attributes:
        request_id: its request.
        index: which of the request's choices.
        arrival: rank among all sequences by time of arrival.
        tokens: prompt and generated tokens.
        prompt_length: how many of them are the prompt.
        variant: what it runs, and is pinned to.
        root: where the hash chain of its pages starts.
        sampler, text: how it goes on, and what is shown of it.
        deliver: takes its chunks, on the event loop.
        prompt_logprobs: alternatives to report for prompt tokens; None when not asked for.
        scores_only: it ends when its prompt is scored.
        leader: another choice of the same prompt that computes it first.
        computed: positions whose keys and values are in the cache.
        pages: pages it holds, in order.
        chain: keys of its full pages, as far as they have been made.
        prompt_rows: log-probs of the prompt so far.
        cached_tokens: tokens found in the prefix cache when it was first admitted.
    """

    request_id: str
    index: int
    arrival: int
    tokens: list[int]
    prompt_length: int
    variant: Variant
    root: bytes
    sampler: SequenceSampler
    text: ChoiceText
    deliver: Deliver
    prompt_logprobs: int | None = None
    scores_only: bool = False
    leader: Sequence | None = None
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    chain: list[bytes] = field(default_factory=list)
    registered: int = 0
    prompt_rows: list[TokenLogprobs | None] = field(default_factory=lambda: [None])
    cached_tokens: int = 0
    admitted: bool = False
    started: bool = False
    finished: bool = False

    @property
    def known(self) -> int:
        """Tokens to put through the model: the last one's logits are what it goes on from.

        Scoring needs none that predict beyond the prompt, so its last token stays out.
        """
        return len(self.tokens) - self.scores_only

    @property
    def remaining(self) -> int:
        """Tokens that are known but not in the cache yet."""
        return self.known - self.computed

    @property
    def wants_prompt_rows(self) -> bool:
        """Whether logits of prompt positions are still to be read."""
        return self.prompt_logprobs is not None and not self.started

    @property
    def prompt_done(self) -> bool:
        """Whether others may take its prompt from the prefix cache, or never will."""
        return self.finished or self.computed >= self.prompt_length

    def key(self, page: int) -> bytes:
        """Prefix-cache key of its full page number `page` (counting from 0)."""
        while len(self.chain) <= page:
            first = len(self.chain) * PAGE_POSITIONS
            previous = self.chain[-1] if self.chain else self.root
            self.chain.append(extend_chain(previous, self.tokens[first : first + PAGE_POSITIONS]))
        return self.chain[page]
