"""Token counts over prompts and choices."""

from __future__ import annotations

from engines.base import GenerationChunk
from serving.generation import PromptChunk
from serving.usage import UsageCounter


def test_what_a_second_choice_finds_of_the_first_was_not_cached() -> None:
    counter = UsageCounter([(1,) * 200, (2,) * 100])
    for prompt, index, cached in ((0, 0, 0), (0, 1, 192), (1, 1, 96), (1, 0, 64)):
        counter.add(PromptChunk(prompt, GenerationChunk(index, "a", (5,), cached_tokens=cached)))
        counter.add(PromptChunk(prompt, GenerationChunk(index, "a", (5,))))
    usage = counter.usage()
    assert (usage.prompt_tokens, usage.completion_tokens) == (300, 8)
    assert usage.prompt_tokens_details.cached_tokens == 64
