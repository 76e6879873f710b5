"""What completion and chat requests share."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engines.decoding.structured_output import MAX_CONSTRAINT_CHARS
from engines.sampling import MAX_LOGPROBS, MAX_STOPS
from serving.errors import invalid
from serving.unknown_fields import without_unknown

MAX_TOKEN_ID = 2**31 - 1
MAX_STOP_CHARS = 1024
MAX_STOP_TOKEN_IDS = 256
MAX_LOGIT_BIAS = 1024

TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
ChoiceString = Annotated[str, Field(min_length=1, max_length=4096)]
Metadata = Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)]
BiasKey = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]
BiasValue = Annotated[float, Field(ge=-100, le=100)]


class StrictModel(BaseModel):
    """A request body: unknown fields are errors, `"5"` is no number, NaN is none either.

    A field that is null is absent, whatever the field. Unknown fields are left out where
    `serving.unknown_fields` is told so.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = {name: value for name, value in data.items() if value is not None}
        return without_unknown(given, _names(cls))


@cache
def _names(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(field.alias or name for name, field in model.model_fields.items())


class StreamOptions(StrictModel):
    """What a stream carries besides the text."""

    include_usage: bool | None = Field(None, description="One more chunk, with the token counts.")
    continuous_usage_stats: bool | None = Field(
        None, description="Token counts so far in every chunk; needs include_usage."
    )
    include_obfuscation: Literal[False] | None = None


class JsonSchemaFormat(StrictModel):
    """`response_format.json_schema`."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = Field(None, max_length=4096)
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextFormat(StrictModel):
    """`response_format` without a constraint."""

    type: Literal["text"]


class JsonObjectFormat(StrictModel):
    """`response_format`: any JSON object."""

    type: Literal["json_object"]


class JsonSchemaResponseFormat(StrictModel):
    """`response_format`: JSON of one schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchemaFormat


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaResponseFormat, Field(discriminator="type")
]


class StructuredOutputs(StrictModel):
    """vLLM's `structured_outputs`; exactly one constraint."""

    json_: dict[str, Any] | str | None = Field(
        None, alias="json", description="A JSON schema, as an object or as text."
    )
    json_object: Literal[True] | None = None
    regex: str | None = Field(None, min_length=1, max_length=MAX_CONSTRAINT_CHARS)
    choice: Annotated[list[ChoiceString], Field(fail_fast=True)] | None = Field(
        None, min_length=1, max_length=1024
    )
    disable_any_whitespace: bool | None = Field(
        None, description="JSON on one line; default: as the server's setting json_whitespace says."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> StructuredOutputs:
        given = [
            v for v in (self.json_, self.json_object, self.regex, self.choice) if v is not None
        ]
        if len(given) != 1:
            raise invalid(
                "structured_outputs takes exactly one of json, json_object, regex, choice",
                "structured_outputs",
            )
        return self


class GenerationFields(StrictModel):
    """Sampling and routing fields that completion and chat requests share."""

    model: str | None = Field(
        None, max_length=256, description="`base`, or `base:mask`; default: the served one."
    )
    mask: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="The mask, instead of `model: base:mask`.",
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")

    n: int | None = Field(None, ge=1, le=128, description="Choices for each prompt.")
    temperature: float | None = Field(None, ge=0, le=100, description="0 is greedy; default 1.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=MAX_TOKEN_ID, description="0 or -1 is off.")
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    logit_bias: dict[BiasKey, BiasValue] | None = Field(None, max_length=MAX_LOGIT_BIAS)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: TokenIds | None = Field(None, max_length=MAX_STOP_TOKEN_IDS)
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = Field(
        None, description="Leave special tokens out of the text; default: true."
    )
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(None, ge=0, le=MAX_TOKEN_ID)
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    cache_salt: str | None = Field(
        None, max_length=256, description="Prefix-cache entries are shared only within one salt."
    )

    # What changes no answer.
    user: str | None = Field(None, max_length=512)
    metadata: Metadata | None = None
    safety_identifier: str | None = Field(None, max_length=512)
    prompt_cache_key: str | None = Field(None, max_length=512)
    prompt_cache_retention: str | None = Field(None, max_length=64)
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None

    @model_validator(mode="after")
    def _check_shared(self) -> GenerationFields:
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options needs stream: true", "stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise invalid("prompt_logprobs cannot be combined with stream: true", "prompt_logprobs")
        if self.structured_outputs is not None and self.response_format is not None:
            raise invalid(
                "give response_format or structured_outputs, not both", "structured_outputs"
            )
        return self


class PromptTokensDetails(BaseModel):
    """Part of `usage`."""

    cached_tokens: int


class Usage(BaseModel):
    """Token counts of one request, summed over its prompts and choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class PromptLogprob(BaseModel):
    """One alternative at a prompt position."""

    logprob: float
    rank: int
    decoded_token: str


# One entry for each prompt token, by token id; the first has none.
PromptLogprobs = list[dict[int, PromptLogprob] | None]


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail
