"""Greedy tokens through vLLM against the reference engine, on real weights and real text.

The reference computes in float32, vLLM in bf16, so a choice that is nearly a toss-up may fall
either way. Every step that vLLM took is judged on its own: the reference reads vLLM's own text and
says what it would have chosen next, and by how much. The rule: where the two differ, the
reference's margin between its first and second choice is below `--margin`; steps that break it may
be 1 % at most, else `twofour bench vllm agreement` ends with an error.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.result_file import ResultRow
from engines.base import Engine, GenerationRequest, TokenLogprobs
from engines.directory.build import BuildRequest
from engines.registry import open_engine
from engines.sampling import SamplingParams
from maskgen.models import model_name, resolve_model

ALLOWED_SHARE = 0.01


@dataclass(frozen=True)
class Step:
    """One generated token: vLLM's choice beside the reference's.

    Attributes:
        same: whether they are the same token.
        margin: log-prob of the reference's first choice less that of its second.
        error: vLLM's log-prob of its choice less the reference's of that token.
    """

    same: bool
    margin: float
    error: float


@dataclass(frozen=True)
class AgreementPlan:
    """What to compare.

    Attributes:
        model: alias or directory.
        mask: mask file.
        prompts: how many, each the first tokens of another text.
        prompt_tokens, output_tokens: of each.
        margin: log-prob; a choice with a smaller one is a toss-up.
        eager: without torch.compile.
    """

    model: str
    mask: Path
    prompts: int
    prompt_tokens: int
    output_tokens: int
    margin: float
    eager: bool


def measure(plan: AgreementPlan, texts: Sequence[str], say: Callable[[str], None]) -> ResultRow:
    """The row of vllm-agreement.json.

    Raises:
        ValueError: too few of the texts are long enough.
    """
    return _row(plan, asyncio.run(_compare(plan, texts, say)))


def check(row: ResultRow) -> None:
    """Hold the row to the rule.

    Raises:
        ValueError: too many steps break it.
    """
    if row["broken_share"] > ALLOWED_SHARE:
        raise ValueError(
            f"{row['broken_share']:.2%} of the steps differ from the reference where its margin is"
            f" at least {row['margin']}; at most {ALLOWED_SHARE:.0%} may"
        )


async def _compare(
    plan: AgreementPlan, texts: Sequence[str], say: Callable[[str], None]
) -> list[Step]:
    from engines.reference.build import build as build_reference
    from engines.vllm_plugin.build import build

    with tempfile.TemporaryDirectory(prefix="twofour-vllm-agreement-") as name:
        folder = Path(name)
        model, masks = resolve_model(plan.model), {"general": plan.mask}
        for kind, builder in (("vllm", build), ("reference", build_reference)):
            builder(BuildRequest(model, model_name(plan.model), masks, folder / kind))
        engine = open_engine(folder / "vllm", enforce_eager=plan.eager, max_model_len=1024)
        try:
            prompts = _prompts(engine, texts, plan.prompts, plan.prompt_tokens)
            made = await asyncio.gather(
                *(_greedy(engine, str(i), p, plan.output_tokens) for i, p in enumerate(prompts))
            )
        finally:
            await engine.close()
        oracle = open_engine(folder / "reference")
        try:
            steps: list[Step] = []
            for number, (prompt, chosen) in enumerate(zip(prompts, made, strict=True)):
                say(f"reference: prompt {number + 1} of {len(prompts)}")
                steps += await _judge(oracle, str(number), prompt, chosen)
            return steps
        finally:
            await oracle.close()


def _prompts(
    engine: Engine, texts: Sequence[str], count: int, tokens: int
) -> list[tuple[int, ...]]:
    """The first tokens of the first texts that are long enough."""
    encoded = (tuple(engine.codec.encode(text))[:tokens] for text in texts)
    found = [prompt for prompt in encoded if len(prompt) == tokens][:count]
    if len(found) < count:
        raise ValueError(f"--data holds {len(found)} texts of {tokens} tokens, not {count}")
    return found


async def _greedy(
    engine: Engine, key: str, prompt: tuple[int, ...], tokens: int
) -> list[TokenLogprobs]:
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, logprobs=1)
    request = GenerationRequest(key, prompt, sampling)
    return [lp async for chunk in engine.generate(request) for lp in chunk.logprobs or ()]


async def _judge(
    oracle: Engine, key: str, prompt: tuple[int, ...], chosen: Sequence[TokenLogprobs]
) -> list[Step]:
    """The reference's view of every token that vLLM chose."""
    text = (*prompt, *(lp.token_id for lp in chosen))
    sampling = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=2)
    entries: Sequence[TokenLogprobs | None] = ()
    async for chunk in oracle.generate(GenerationRequest(key, text, sampling)):
        entries = chunk.prompt_logprobs or entries
    steps = []
    for ours, theirs in zip(chosen, entries[len(prompt) :], strict=True):
        if theirs is None:
            raise RuntimeError("the reference gave no log-prob for a token of the prompt")
        (best, first), (_, second) = theirs.top[:2]
        steps.append(Step(best == ours.token_id, first - second, ours.logprob - theirs.logprob))
    return steps


def _row(plan: AgreementPlan, steps: Sequence[Step]) -> ResultRow:
    differ = [step.margin for step in steps if not step.same]
    broken = [margin for margin in differ if margin >= plan.margin]
    return {
        "model": plan.model,
        "mask": str(plan.mask),
        "mode": "eager" if plan.eager else "compiled",
        "prompts": plan.prompts,
        "steps": len(steps),
        "margin": plan.margin,
        "small_margin_share": round(
            sum(step.margin < plan.margin for step in steps) / len(steps), 4
        ),
        "differ_share": round(len(differ) / len(steps), 4),
        "broken_share": round(len(broken) / len(steps), 4),
        "largest_margin_where_different": round(max(differ, default=0.0), 4),
        "mean_logprob_error": round(sum(abs(step.error) for step in steps) / len(steps), 4),
        "largest_logprob_error": round(max(abs(step.error) for step in steps), 4),
    }
