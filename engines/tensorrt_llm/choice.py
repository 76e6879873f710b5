"""One choice of a request: from the results of the LLM API to the chunks of `engines.base`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from engines.base import FinishReason, GenerationChunk, TokenLogprobs
from engines.decoding.output_text import ChoiceText
from engines.decoding.request_checks import scored
from engines.decoding.sampler import logprobs_of
from engines.sampling import SamplingParams
from engines.tensorrt_llm.llm_api import GenerationResult, Output, logits_array
from engines.text import TextCodec

_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


async def run_choice(
    index: int,
    result: GenerationResult,
    prompt: tuple[int, ...],
    params: SamplingParams,
    codec: TextCodec,
    max_tokens: int,
    aborted: Callable[[], bool],
) -> AsyncIterator[GenerationChunk]:
    """Yield the chunks of one choice; the last one has a finish reason, whatever happens.

    Args:
        index: which choice.
        result: the running request; aborted when it must not go on.
        prompt: its token ids.
        params: of this choice.
        codec: of the model.
        max_tokens: most tokens to generate.
        aborted: whether the request was aborted meanwhile.
    """
    text = ChoiceText(codec.stream_of(params, prompt), params, codec.eos_token_ids, max_tokens)
    seen = 0
    try:
        async for step in result:
            output = step.outputs[0]
            if aborted():
                break
            if params.scores_only:
                yield scored(index, _prompt_scores(step, prompt, params, len(prompt) - 1))
                return
            new = output.token_ids[seen:]
            seen = len(output.token_ids)
            chunk = _chunk(index, text, new, output.finish_reason, params)
            if params.logprobs is not None or params.prompt_logprobs is not None:
                if output.finish_reason is None:
                    raise ValueError("TensorRT-LLM streamed a request for log-probs")
                chunk = _with_logprobs(chunk, step, output, prompt, params)
            if chunk.token_ids or chunk.finish_reason is not None:
                yield chunk
            if chunk.finish_reason is not None:
                return
        yield GenerationChunk(index, text.flush(), (), finish_reason="abort")
    except Exception as error:
        message = str(error) or type(error).__name__
        yield GenerationChunk(index, "", (), finish_reason="error", error=message)
    finally:
        # Without effect on a finished one; a stop string ends it early, as does a closed stream.
        result.abort()


def _chunk(
    index: int, text: ChoiceText, new: list[int], reason: str | None, params: SamplingParams
) -> GenerationChunk:
    """Decode new tokens up to the one that ends the choice, if one does."""
    pieces: list[str] = []
    taken: list[int] = []
    for token in new:
        piece = text.push(token)
        pieces.append(piece.text)
        taken.append(token)
        if piece.finish_reason is not None:
            return GenerationChunk(
                index,
                "".join(pieces),
                tuple(taken),
                finish_reason=piece.finish_reason,
                stop_reason=piece.stop_reason,
            )
    if reason is not None:
        # An end-of-sequence token that the results leave out, a timeout or a cancellation.
        pieces.append(text.flush())
    finish = None if reason is None else _REASONS.get(reason, "abort")
    return GenerationChunk(index, "".join(pieces), tuple(taken), finish_reason=finish)


def _with_logprobs(
    chunk: GenerationChunk,
    step: GenerationResult,
    output: Output,
    prompt: tuple[int, ...],
    params: SamplingParams,
) -> GenerationChunk:
    generated: tuple[TokenLogprobs, ...] | None = None
    of_prompt: tuple[TokenLogprobs | None, ...] | None = None
    if params.logprobs is not None:
        rows = logits_array(output.generation_logits, len(chunk.token_ids))
        generated = tuple(
            logprobs_of(row, token, params.logprobs)
            for row, token in zip(rows, chunk.token_ids, strict=True)
        )
    if params.prompt_logprobs is not None:
        of_prompt = _prompt_scores(step, prompt, params, len(prompt))
    return GenerationChunk(
        chunk.index,
        chunk.text,
        chunk.token_ids,
        logprobs=generated,
        prompt_logprobs=of_prompt,
        finish_reason=chunk.finish_reason,
        stop_reason=chunk.stop_reason,
    )


def _prompt_scores(
    step: GenerationResult, prompt: tuple[int, ...], params: SamplingParams, computed: int
) -> tuple[TokenLogprobs | None, ...]:
    """Log-probs of a prompt, of which the first `computed` tokens were put through the model."""
    rows = logits_array(step.context_logits, computed)
    predicted = zip(rows, prompt[1:], strict=False)
    return (None, *(logprobs_of(row, t, params.prompt_logprobs or 0) for row, t in predicted))
