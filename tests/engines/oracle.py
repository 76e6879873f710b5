"""Helpers that compare an engine's answers with the masked model in transformers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers

from engines.base import Engine, GenerationRequest, TokenLogprobs
from engines.sampling import SamplingParams
from maskgen.format.mask_file import read_mask
from maskgen.format.placements import keep_from_codes


@dataclass
class Answer:
    """One choice, put together from its chunks."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    cached_tokens: int = 0
    error: str | None = None


async def answers(
    engine: Engine,
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    request_id: str = "r",
    mask: str | None = None,
    salt: str = "",
) -> list[Answer]:
    """Run one request to its end; one answer per choice."""
    found = [Answer() for _ in range(params.n)]
    request = GenerationRequest(request_id, tuple(prompt), params, mask, salt)
    async for chunk in engine.generate(request):
        answer = found[chunk.index]
        answer.text += chunk.text
        answer.token_ids += chunk.token_ids
        answer.logprobs += chunk.logprobs or ()
        answer.prompt_logprobs = answer.prompt_logprobs or chunk.prompt_logprobs
        answer.finish_reason = chunk.finish_reason or answer.finish_reason
        answer.stop_reason = chunk.stop_reason if chunk.finish_reason else answer.stop_reason
        answer.cached_tokens += chunk.cached_tokens
        answer.error = chunk.error or answer.error
    return found


async def many(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    masks: Sequence[str | None] | None = None,
) -> list[Answer]:
    """Run requests side by side; their first choices."""
    masks = masks or [None] * len(prompts)
    runs = [
        answers(engine, prompt, params, request_id=str(i), mask=mask)
        for i, (prompt, mask) in enumerate(zip(prompts, masks, strict=True))
    ]
    return [found[0] for found in await asyncio.gather(*runs)]


class Oracle:
    """The model in float32, its weights masked."""

    def __init__(self, model: Path, mask: Path | None = None) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        if mask is not None:
            with torch.no_grad():
                found = read_mask(mask)
                for layer, codes in found.codes.items():
                    keep = torch.from_numpy(keep_from_codes(codes, found.pattern))
                    self.model.get_submodule(layer).weight.mul_(keep)

    @torch.no_grad()
    def log_probs(self, tokens: Sequence[int]) -> np.ndarray:
        """(tokens, vocab) log-probabilities of what follows each token."""
        logits = self.model(torch.tensor([list(tokens)])).logits[0]
        return torch.log_softmax(logits.double(), dim=-1).numpy()


@dataclass
class Agreement:
    """How far greedy answers follow the oracle."""

    steps: int = 0
    unclear: int = 0
    error: float = 0.0  # summed over the steps


def check_greedy(
    oracle: Oracle, prompt: Sequence[int], answer: Answer, *, margin: float, tolerance: float
) -> Agreement:
    """DESIGN's rule: the answer is the oracle's until a step whose top-2 margin is below `margin`.

    Log-probs are compared on the answer's own tokens, at every step.
    """
    rows = oracle.log_probs([*prompt, *answer.token_ids])[len(prompt) - 1 : -1]
    agreement = Agreement()
    for step, (row, token, logprob) in enumerate(
        zip(rows, answer.token_ids, answer.logprobs, strict=True)
    ):
        agreement.steps += 1
        error = abs(row[token] - logprob.logprob)
        assert error <= tolerance, f"step {step}"
        agreement.error += error
        second, first = np.sort(row)[-2:]
        if first - second < margin:
            agreement.unclear += 1
        else:
            assert token == int(row.argmax()), f"step {step}: margin {first - second}"
    return agreement
