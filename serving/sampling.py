"""From request fields to the engine's sampling parameters."""

from __future__ import annotations

import json

from engines.errors import InvalidRequestError
from engines.sampling import SamplingParams, StructuredOutput
from serving.errors import from_engine_error, invalid
from serving.schemas.common import GenerationFields, JsonObjectFormat, JsonSchemaResponseFormat


def to_sampling(
    body: GenerationFields,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    prompt_logprobs: int | None,
    vocab_size: int,
    any_whitespace: bool,
) -> SamplingParams:
    """Sampling parameters of one request; null fields get OpenAI's defaults.

    `any_whitespace` holds for constrained JSON of requests that do not say themselves.

    Raises:
        ApiError: 400 naming the field that is out of range.
    """
    bias = {int(key): value for key, value in (body.logit_bias or {}).items()}
    _check_ids(list(bias), vocab_size, "logit_bias")
    _check_ids(body.stop_token_ids or [], vocab_size, "stop_token_ids")
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    try:
        return SamplingParams(
            n=body.n or 1,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=body.top_k or 0,
            min_p=body.min_p or 0.0,
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
            logit_bias=bias,
            # Engines seed generators with non-negative numbers; clients may send negative ones.
            seed=None if body.seed is None else body.seed % 2**63,
            stop=stop,
            stop_token_ids=tuple(body.stop_token_ids or ()),
            include_stop_str_in_output=bool(body.include_stop_str_in_output),
            ignore_eos=bool(body.ignore_eos),
            min_tokens=body.min_tokens or 0,
            max_tokens=max_tokens,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            structured=_structured(body, any_whitespace),
            skip_special_tokens=body.skip_special_tokens is not False,
        )
    except InvalidRequestError as error:
        raise from_engine_error(error) from error


def constraint_field(body: GenerationFields) -> str:
    """The field that asks for structured output, if one does."""
    return "response_format" if body.structured_outputs is None else "structured_outputs"


def _structured(body: GenerationFields, any_whitespace: bool) -> StructuredOutput | None:
    asked = body.structured_outputs
    if asked is not None:
        if asked.disable_any_whitespace is not None:
            any_whitespace = not asked.disable_any_whitespace
        if asked.regex is not None:
            return StructuredOutput("regex", asked.regex)
        if asked.choice is not None:
            return StructuredOutput("choice", json.dumps(asked.choice))
        if asked.json_ is not None:
            return _json_schema(asked.json_, any_whitespace)
        return StructuredOutput("json_object", any_whitespace=any_whitespace)
    match body.response_format:
        case JsonObjectFormat():
            return StructuredOutput("json_object", any_whitespace=any_whitespace)
        case JsonSchemaResponseFormat(json_schema=named):
            if named.schema_ is None:
                return StructuredOutput("json_object", any_whitespace=any_whitespace)
            return _json_schema(named.schema_, any_whitespace)
        case _:
            return None


def _json_schema(schema: dict[str, object] | str, any_whitespace: bool) -> StructuredOutput:
    source = schema if isinstance(schema, str) else json.dumps(schema)
    return StructuredOutput("json_schema", source, any_whitespace)


def _check_ids(ids: list[int], vocab_size: int, param: str) -> None:
    for token_id in ids:
        if token_id >= vocab_size:
            raise invalid(
                f"{param}: token id {token_id} is not below the vocabulary size {vocab_size}", param
            )
