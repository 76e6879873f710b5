"""Greedy tokens through vLLM against the reference engine, on real weights and real text.

The reference computes in float32, vLLM in bf16, so a choice that is nearly a toss-up may fall
either way. Every step that vLLM took is judged on its own: the reference reads vLLM's own text and
says what it would have chosen next, and by how much. The rule: where the two differ, the
reference's margin between its first and second choice is below `--margin`; steps that break it may
be 1 % at most, else the command ends with an error.

Runs in vLLM's environment and writes docs/results/vllm-agreement.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.result_file import write_result
from engines import kernels
from engines.base import Engine, GenerationRequest, TokenLogprobs
from engines.build import BuildRequest
from engines.registry import open_engine
from engines.sampling import SamplingParams
from engines.vllm_plugin.version import vllm_version
from maskgen.data import load_texts
from maskgen.maskfile import read_mask
from maskgen.models import model_name, resolve_model

NAME = "vllm-agreement"
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


def main() -> None:
    """Compare, write the result file, and fail if the rule is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="alias or directory")
    parser.add_argument(
        "--mask", type=Path, default=Path("masks/smollm2-135m/general.safetensors"), help="file"
    )
    parser.add_argument("--data", default="wikipedia:test", help="text for the prompts")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--prompt-tokens", type=int, default=48)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--margin", type=float, default=0.15, help="log-prob; smaller is a toss-up")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    given = parser.parse_args()
    texts = load_texts(given.data)
    row = _row(given, asyncio.run(_compare(given, texts.texts)))
    command = " ".join(["python -m benchmarks.vllm.agreement", *sys.argv[1:]])
    digests = {texts.name: texts.digest, "mask": read_mask(given.mask).digest}
    path = write_result(NAME, command, [row], digests, vllm=vllm_version(), isa=kernels.isa())
    print(json.dumps(row))
    print(f"wrote {path}", file=sys.stderr)
    if row["broken_share"] > ALLOWED_SHARE:
        raise SystemExit(
            f"error: {row['broken_share']:.2%} of the steps differ from the reference where its"
            f" margin is at least {given.margin}; at most {ALLOWED_SHARE:.0%} may"
        )


async def _compare(given: argparse.Namespace, texts: Sequence[str]) -> list[Step]:
    from engines import reference
    from engines.vllm_plugin.build import build

    with tempfile.TemporaryDirectory(prefix="twofour-vllm-agreement-") as name:
        folder = Path(name)
        model, masks = resolve_model(given.model), {"general": given.mask}
        for kind, builder in (("vllm", build), ("reference", reference.build)):
            builder(BuildRequest(model, model_name(given.model), masks, folder / kind))
        engine = open_engine(folder / "vllm", enforce_eager=given.eager, max_model_len=1024)
        try:
            prompts = _prompts(engine, texts, given.prompts, given.prompt_tokens)
            made = await asyncio.gather(
                *(_greedy(engine, str(i), p, given.output_tokens) for i, p in enumerate(prompts))
            )
        finally:
            await engine.close()
        oracle = open_engine(folder / "reference")
        try:
            steps: list[Step] = []
            for number, (prompt, chosen) in enumerate(zip(prompts, made, strict=True)):
                print(f"reference: prompt {number + 1} of {len(prompts)}", file=sys.stderr)
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
        raise SystemExit(f"error: the data hold {len(found)} texts of {tokens} tokens, not {count}")
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


def _row(given: argparse.Namespace, steps: Sequence[Step]) -> dict[str, Any]:
    differ = [step.margin for step in steps if not step.same]
    broken = [margin for margin in differ if margin >= given.margin]
    return {
        "model": given.model,
        "mask": str(given.mask),
        "mode": "eager" if given.eager else "compiled",
        "prompts": given.prompts,
        "steps": len(steps),
        "margin": given.margin,
        "small_margin_share": round(
            sum(step.margin < given.margin for step in steps) / len(steps), 4
        ),
        "differ_share": round(len(differ) / len(steps), 4),
        "broken_share": round(len(broken) / len(steps), 4),
        "largest_margin_where_different": round(max(differ, default=0.0), 4),
        "mean_logprob_error": round(sum(abs(step.error) for step in steps) / len(steps), 4),
        "largest_logprob_error": round(max(abs(step.error) for step in steps), 4),
    }


if __name__ == "__main__":
    main()
