"""From a chat request to its running generation."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from serving.generation import Generation
from serving.logprob_limit import limit_logprobs
from serving.names import ResolvedModel
from serving.sampling import constraint_field, to_sampling
from serving.schemas.chat import ChatRequest
from serving.service import Service
from serving.tools.tooling import ToolPlan


@dataclass(frozen=True)
class Conversation:
    """A chat that was admitted.

    Attributes:
        target: the model and mask that answer.
        prompt: token ids.
        plan: what is asked of tools, if anything.
        generation: not started yet.
    """

    target: ResolvedModel
    prompt: tuple[int, ...]
    plan: ToolPlan | None
    generation: Generation


async def start_conversation(body: ChatRequest, http: Request, service: Service) -> Conversation:
    """Check, admit and render a chat request.

    Raises:
        ApiError: the request is refused.
    """
    target = service.names.resolve(body.model, body.mask)
    service.admission.check(body.n or 1, "n")
    plan = service.tooling.plan(body.tools, body.tool_choice, body.parallel_tool_calls)
    max_tokens = body.max_completion_tokens or body.max_tokens
    asked_by = "max_completion_tokens" if body.max_completion_tokens else "max_tokens"
    sampling = to_sampling(
        body,
        max_tokens=max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        vocab_size=service.vocab_size,
        any_whitespace=service.settings.json_whitespace == "any",
    )
    asked = sampling.structured
    if plan is not None:
        sampling = service.tooling.constrain(sampling, plan)
    field = constraint_field(body) if sampling.structured is asked else "tools"
    await service.constraints.check(sampling.structured, field)
    ticket = service.admission.admit(body.n or 1, "n")
    try:
        prompt = await service.prompts.chat(body.messages, plan.shown if plan else (), body)
        service.prompts.check_room([prompt], max_tokens, asked_by)
        sampling = limit_logprobs(
            sampling,
            [prompt],
            streamed=bool(body.stream),
            context_length=service.context_length,
            limit=service.settings.max_logprob_entries,
            param="logprobs" if body.prompt_logprobs is None else "prompt_logprobs",
        )
        generation = service.generation(http, ticket, target, [prompt], sampling, body.cache_salt)
    except BaseException:
        ticket.release()
        raise
    return Conversation(target, prompt, plan, generation)
