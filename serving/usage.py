"""Counting tokens for `usage`."""

from __future__ import annotations

from collections.abc import Sequence

from serving.generation import PromptChunk
from serving.schemas.common import PromptTokensDetails, StreamOptions, Usage


class UsageCounter:
    """Token counts of one request, over all its prompts and choices.

    Args:
        prompts: token ids of each.
        options: of a streamed answer; None shows counts only in a whole one.

    Attributes:
        at_end: whether a stream ends with the counts.
        in_chunks: whether every chunk of a stream has those so far.
    """

    def __init__(
        self, prompts: Sequence[tuple[int, ...]], options: StreamOptions | None = None
    ) -> None:
        self.at_end = bool(options and options.include_usage)
        self.in_chunks = bool(self.at_end and options and options.continuous_usage_stats)
        self._prompt_tokens = sum(map(len, prompts))
        self._completion_tokens = 0
        # Choices of one prompt share its tokens, so each prompt's cached ones count once: as few as
        # any choice found, since what a later one finds may be of the first.
        self._cached: dict[int, int] = {}
        self._begun: set[tuple[int, int]] = set()

    def add(self, piece: PromptChunk) -> None:
        """Count one chunk."""
        self._completion_tokens += len(piece.chunk.token_ids)
        choice = (piece.prompt, piece.chunk.index)
        if choice not in self._begun:  # the first chunk of a choice says how many were cached
            self._begun.add(choice)
            found = piece.chunk.cached_tokens
            self._cached[piece.prompt] = min(self._cached.get(piece.prompt, found), found)

    def usage(self) -> Usage:
        """The counts so far."""
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            total_tokens=self._prompt_tokens + self._completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(self._cached.values())),
        )
