"""An engine directory as the subject of an evaluation."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from evaluation.subject import Subject, TokenScore, complete_scores


@contextmanager
def engine_subject(directory: Path, mask: str | None) -> Iterator[Subject]:
    """An engine directory, run by its own engine in this process.

    Raises:
        EngineDirectoryError: the directory cannot be opened.
        UnknownMaskError: it holds no mask of that name.
    """
    from engines.base import Engine, GenerationRequest
    from engines.cpu.idle import shorten_spinning
    from engines.directory.manifest import read_manifest
    from engines.errors import UnknownMaskError
    from engines.mask_rules import DENSE
    from engines.registry import open_engine
    from engines.sampling import SamplingParams

    sampling = SamplingParams(max_tokens=0, prompt_logprobs=0)
    manifest = read_manifest(directory)
    names = [record.name for record in manifest.masks] + [DENSE] * manifest.dense
    if mask is not None and mask not in names:
        raise UnknownMaskError(f"{directory} has no mask {mask!r}; it has: {', '.join(names)}")

    async def start() -> Engine:
        shorten_spinning()
        return open_engine(directory)

    async def score(tokens: Sequence[int]) -> list[TokenScore]:
        request = GenerationRequest("eval", tuple(tokens), sampling, mask)
        found: list[TokenScore] = []
        async for chunk in engine.generate(request):
            if chunk.error is not None:
                raise ValueError(f"the engine failed: {chunk.error}")
            if chunk.prompt_logprobs is not None:
                entries = [entry for entry in chunk.prompt_logprobs if entry is not None]
                found = [TokenScore(entry.logprob, entry.rank == 1) for entry in entries]
        return complete_scores(found, len(tokens))

    with asyncio.Runner() as runner:
        engine = runner.run(start())
        try:
            yield Subject(
                token_scores=lambda tokens: runner.run(score(tokens)),
                encode=engine.codec.encode,
                model=manifest.model,
                mask=None if mask == DENSE else mask or manifest.default_mask,
                dtype="fp32" if manifest.target == "reference" else engine.describe().values,
                bos_token_id=engine.codec.bos_token_id,
                context_length=engine.describe().context_length,
            )
        finally:
            runner.run(engine.close())
