"""Bodies of `/v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from engines.sampling import MAX_LOGPROBS
from serving.errors import invalid
from serving.schemas.common import (
    MAX_TOKEN_ID,
    GenerationFields,
    PromptLogprobs,
    StrictModel,
    Usage,
)

MAX_MESSAGES = 4096

Empty = Annotated[list[Any], Field(max_length=0)]


class TextPart(StrictModel):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


Parts = Annotated[list[TextPart], Field(min_length=1, max_length=1024, fail_fast=True)]


class Message(StrictModel):
    """One message. The fields that are always null come with messages sent back as received."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Parts | None = Field(
        None, validate_default=True, description="Only an assistant's may be null."
    )
    name: str | None = Field(
        None, max_length=256, description="Who speaks; most templates ignore it."
    )
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Empty | None = None
    annotations: Empty | None = None

    @field_validator("content")
    @classmethod
    def _only_assistants_are_silent(
        cls, content: str | list[TextPart] | None, info: ValidationInfo
    ) -> str | list[TextPart] | None:
        if content is None and info.data.get("role") != "assistant":
            raise PydanticCustomError("missing", "Field required")
        return content

    def for_template(self) -> dict[str, str]:
        """What chat templates read: a role they know, and plain text."""
        role = "system" if self.role == "developer" else self.role
        content = self.content or ""
        if not isinstance(content, str):
            content = "\n".join(part.text for part in content)
        spoken = {"role": role, "content": content}
        return spoken if self.name is None else {**spoken, "name": self.name}


class ChatRequest(GenerationFields):
    """A chat completion."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKEN_ID, description="Default: what the context leaves."
    )
    max_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKEN_ID, description="Older name of max_completion_tokens."
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Only with logprobs: true."
    )

    # Known fields of OpenAI's API, with the values that ask for nothing.
    audio: None = None
    function_call: Literal["none"] | None = None
    functions: Empty | None = None
    metadata: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    parallel_tool_calls: None = None
    prediction: None = None
    reasoning_effort: Literal["none"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    tool_choice: Literal["none"] | None = None
    tools: Empty | None = None
    verbosity: None = None
    web_search_options: None = None

    @model_validator(mode="after")
    def _check(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise invalid(
                "max_tokens and max_completion_tokens differ; give one of them", "max_tokens"
            )
        return self


class ChatTopLogprob(BaseModel):
    """One alternative at a position."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(ChatTopLogprob):
    """The chosen token at a position."""

    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probs of a choice."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class AssistantMessage(BaseModel):
    """The answer of one choice."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One choice."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"]
    stop_reason: str | int | None = None


class ChatResponse(BaseModel):
    """The answer to a chat request."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    prompt_logprobs: PromptLogprobs | None = None


class ChatDelta(BaseModel):
    """What a chunk adds to a message; absent keys add nothing."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    """What a chunk adds to one choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: str | int | None = None


class ChatChunk(BaseModel):
    """One chunk of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    system_fingerprint: str
