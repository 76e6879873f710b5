"""Helpers that compare an engine's answers with the masked model in transformers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from engines.base import Engine, GenerationRequest, TokenLogprobs
from engines.sampling import SamplingParams
from maskgen.format.mask_file import read_mask
from maskgen.format.placements import keep_from_codes

ROUTE_MARGIN = 0.05
"""Of router logits: what rounding activations to bf16 may turn."""


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
    """The model in float32, its weights masked.

    Attributes:
        route_margins: (tokens,) of the last `log_probs`: by how much the router's last chosen
            expert was ahead of the next one, in logits, at its closest; infinite without experts.
    """

    def __init__(self, model: Path, mask: Path | None = None) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self._margins: list[np.ndarray] = []
        self.route_margins = np.empty(0)
        for module in self.model.modules():
            if type(module).__name__.endswith("TopKRouter"):
                module.register_forward_hook(self._record_margin)
        if mask is not None:
            with torch.no_grad():
                found = read_mask(mask)
                for layer, codes in found.codes.items():
                    keep = torch.from_numpy(keep_from_codes(codes, found.pattern))
                    self._weight(layer).mul_(keep)

    def _record_margin(self, router: Any, inputs: Any, output: tuple[torch.Tensor, ...]) -> None:
        if router.top_k < output[0].shape[-1]:
            ranked = output[0].sort(dim=-1, descending=True).values
            self._margins.append((ranked[:, router.top_k - 1] - ranked[:, router.top_k]).numpy())

    def _weight(self, layer: str) -> torch.Tensor:
        """A linear's weight, or the part of a fused parameter that holds an expert's matrix."""
        expert = re.fullmatch(r"(.*)\.(\w+)\.experts\.(\d+)\.(\w+)", layer)
        if expert is None:
            weight: torch.Tensor = self.model.get_submodule(layer).weight
            return weight
        fused = self.model.get_submodule(f"{expert[1]}.mlp.experts")
        if expert[4] in ("w2", "down_proj"):
            return fused.down_proj[int(expert[3])]
        gate, up = fused.gate_up_proj[int(expert[3])].chunk(2)
        return gate if expert[4] in ("w1", "gate_proj") else up

    @torch.no_grad()
    def log_probs(self, tokens: Sequence[int]) -> np.ndarray:
        """(tokens, vocab) log-probabilities of what follows each token."""
        self._margins = [np.full(len(tokens), np.inf)]
        logits = self.model(torch.tensor([list(tokens)])).logits[0]
        self.route_margins = np.min(self._margins, axis=0)
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

    Log-probs are compared on the answer's own tokens, at every step but those at which two experts
    are so nearly level that rounding may choose the other one.
    """
    rows = oracle.log_probs([*prompt, *answer.token_ids])[len(prompt) - 1 : -1]
    margins = oracle.route_margins[len(prompt) - 1 : -1]
    agreement = Agreement()
    for step, (row, route, token, logprob) in enumerate(
        zip(rows, margins, answer.token_ids, answer.logprobs, strict=True)
    ):
        agreement.steps += 1
        if route < ROUTE_MARGIN:
            agreement.unclear += 1
            continue
        error = abs(row[token] - logprob.logprob)
        assert error <= tolerance, f"step {step}"
        agreement.error += error
        second, first = np.sort(row)[-2:]
        if first - second < margin:
            agreement.unclear += 1
        else:
            assert token == int(row.argmax()), f"step {step}: margin {first - second}"
    return agreement
