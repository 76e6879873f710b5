"""Bodies of `/v1/responses`: OpenAI's Responses API, as far as it needs no memory of the server."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from serving.errors import invalid
from serving.schemas.chat import MAX_MESSAGES, Empty
from serving.schemas.common import (
    MAX_TOKEN_ID,
    JsonObjectFormat,
    JsonSchemaFormat,
    Metadata,
    StrictModel,
    TextFormat,
)
from serving.schemas.tools import MAX_TOOLS, FunctionDefinition, FunctionName

ItemId = Annotated[str, Field(max_length=256)]
Status = Literal["in_progress", "completed", "incomplete"]


class TextContent(StrictModel):
    """A piece of a message's text, as it is sent or as it was received."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: Empty | None = None
    logprobs: Empty | None = None


Content = str | Annotated[list[TextContent], Field(min_length=1, max_length=1024, fail_fast=True)]


class MessageItem(StrictModel):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    id: ItemId | None = None
    status: Status | None = None
    phase: None = None


class CallItem(StrictModel):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str = Field(min_length=1, max_length=256)
    name: FunctionName
    arguments: str = Field(description="JSON, as it was received.")
    id: ItemId | None = None
    status: Status | None = None


class CallOutputItem(StrictModel):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1, max_length=256)
    output: Content
    id: ItemId | None = None
    status: Status | None = None


def _kind(item: Any) -> Any:
    """An item's type; messages need not say theirs."""
    return item.get("type") or "message" if isinstance(item, dict) else "message"


InputItem = Annotated[
    Annotated[CallItem, Tag("function_call")]
    | Annotated[CallOutputItem, Tag("function_call_output")]
    | Annotated[MessageItem, Tag("message")],
    Discriminator(
        _kind,
        custom_error_type="item_type",
        custom_error_message="the type must be message, function_call or function_call_output",
    ),
]


class FlatTool(FunctionDefinition):
    """One entry of `tools`."""

    type: Literal["function"]


class FlatChoice(StrictModel):
    """`tool_choice` of one function."""

    type: Literal["function"]
    name: FunctionName


class FlatSchemaFormat(JsonSchemaFormat):
    """`text.format`: JSON of one schema."""

    type: Literal["json_schema"]


OutputFormat = Annotated[
    TextFormat | JsonObjectFormat | FlatSchemaFormat, Field(discriminator="type")
]


class TextOptions(StrictModel):
    """`text`."""

    format: OutputFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(StrictModel):
    """`reasoning`, with the values that ask for nothing."""

    effort: Literal["none"] | None = None
    summary: Literal["auto"] | None = None


class StreamOptionsOfResponses(StrictModel):
    """`stream_options`."""

    include_obfuscation: Literal[False] | None = None


class ResponsesRequest(StrictModel):
    """One turn. Nothing is kept: the conversation comes with every request."""

    model: str | None = Field(
        None, max_length=256, description="`base`, or `base:mask`; default: the served one."
    )
    mask: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="The mask, instead of `model: base:mask`.",
    )
    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = Field(None, description="A system message before the input.")
    max_output_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKEN_ID, description="Default: what the context leaves."
    )
    temperature: float | None = Field(None, ge=0, le=100, description="0 is greedy; default 1.")
    top_p: float | None = Field(None, gt=0, le=1)
    stream: bool | None = None
    text: TextOptions | None = None
    tools: Annotated[list[FlatTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatChoice | None = None
    parallel_tool_calls: bool | None = None
    cache_salt: str | None = Field(
        None, max_length=256, description="Prefix-cache entries are shared only within one salt."
    )

    # What changes no answer.
    metadata: Metadata | None = None
    store: bool | None = Field(None, description="Nothing is kept either way.")
    user: str | None = Field(None, max_length=512)
    safety_identifier: str | None = Field(None, max_length=512)
    prompt_cache_key: str | None = Field(None, max_length=512)
    prompt_cache_retention: str | None = Field(None, max_length=64)
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    include: list[Literal["reasoning.encrypted_content"]] | None = Field(
        None, max_length=8, description="There is no reasoning to include."
    )

    # Known fields of OpenAI's API, with the values that ask for nothing.
    background: Literal[False] | None = None
    conversation: None = None
    max_tool_calls: None = None
    previous_response_id: None = None
    prompt: None = None
    reasoning: Reasoning | None = None
    stream_options: StreamOptionsOfResponses | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    truncation: Literal["disabled"] | None = None

    @model_validator(mode="after")
    def _check(self) -> ResponsesRequest:
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options needs stream: true", "stream_options")
        return self


class OutputText(BaseModel):
    """The text of an answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = Field(default_factory=list)
    logprobs: list[Any] = Field(default_factory=list)


class OutputMessage(BaseModel):
    """An answer's message."""

    type: Literal["message"] = "message"
    id: str
    status: Status
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class OutputCall(BaseModel):
    """A call in an answer; `arguments` is JSON."""

    type: Literal["function_call"] = "function_call"
    id: str
    status: Status
    call_id: str
    name: str
    arguments: str


OutputItem = OutputMessage | OutputCall


class InputTokensDetails(BaseModel):
    """Part of `usage`."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(BaseModel):
    """Part of `usage`."""

    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    """Token counts of one response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(BaseModel):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class ResponseFailure(BaseModel):
    """Why a response failed, by one of the codes that OpenAI's clients know."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class ResponseObject(BaseModel):
    """A response, finished or on the way."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: Literal[False] = False
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None = None
    reasoning: dict[str, None] = Field(default_factory=lambda: {"effort": None, "summary": None})
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None


class ResponseEvent(BaseModel, extra="allow"):
    """One event of a stream; what else it holds depends on its type (OpenAI's names)."""

    type: str
    sequence_number: int
