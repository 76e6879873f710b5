"""Bodies of `/v1/chat/completions`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

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
from serving.schemas.nesting import too_deep
from serving.schemas.tools import (
    MAX_TOOLS,
    ToolCall,
    ToolCallDelta,
    ToolCallMessage,
    ToolChoice,
    Tools,
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

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Parts | None = Field(
        None, validate_default=True, description="Only an assistant's may be null."
    )
    name: str | None = Field(
        None, max_length=256, description="Who speaks; most templates ignore it."
    )
    refusal: None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[ToolCallMessage] | None = Field(
        None, max_length=MAX_TOOLS, description="Only an assistant's."
    )
    tool_call_id: str | None = Field(
        None, max_length=256, description="The call that a tool's message answers."
    )
    annotations: Empty | None = None
    parsed: Any = Field(None, description="What OpenAI's clients made of content; not read.")

    @field_validator("content")
    @classmethod
    def _only_assistants_are_silent(
        cls, content: str | list[TextPart] | None, info: ValidationInfo
    ) -> str | list[TextPart] | None:
        if content is None and info.data.get("role") != "assistant":
            raise PydanticCustomError("missing", "Field required")
        return content

    @model_validator(mode="after")
    def _check_tools(self) -> Message:
        if self.tool_calls and self.role != "assistant":
            raise PydanticCustomError("tool_calls", "only an assistant's message has tool_calls")
        if (self.tool_call_id is None) == (self.role == "tool"):
            raise PydanticCustomError(
                "tool_call_id", "a tool's message has a tool_call_id, and no other message has one"
            )
        return self

    def for_template(self) -> dict[str, Any]:
        """What chat templates read: a role they know, plain text, and arguments as objects."""
        content = self.content or ""
        if not isinstance(content, str):
            content = "\n".join(part.text for part in content)
        spoken = {
            "role": "system" if self.role == "developer" else self.role,
            "content": content,
            "name": self.name,
            "tool_calls": [_call_for_template(call) for call in self.tool_calls or ()] or None,
            "tool_call_id": self.tool_call_id,
        }
        return {key: value for key, value in spoken.items() if value is not None}


def _call_for_template(call: ToolCallMessage) -> dict[str, Any]:
    """A call as templates read it; arguments that a model wrote wrongly stay text."""
    try:
        arguments = json.loads(call.function.arguments)
    except (ValueError, RecursionError):
        arguments = call.function.arguments
    if too_deep(arguments):
        arguments = call.function.arguments
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


class TemplateFields(StrictModel):
    """How a conversation becomes a prompt."""

    tools: Tools | None = Field(None, description="Functions that the conversation is told of.")
    add_generation_prompt: bool | None = Field(
        None, description="End with the beginning of an answer; default: unless one is continued."
    )
    continue_final_message: bool | None = Field(
        None, description="End in the middle of the last message, which is to be continued."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, max_length=32, description="Further variables of the chat template."
    )

    @model_validator(mode="after")
    def _check_ending(self) -> Self:
        if self.continue_final_message and self.add_generation_prompt:
            raise invalid(
                "continue_final_message cannot be combined with add_generation_prompt: true",
                "continue_final_message",
            )
        return self

    def for_template(self) -> dict[str, Any]:
        """Options of `TextCodec.render_chat`."""
        continued = bool(self.continue_final_message)
        added = self.add_generation_prompt
        return {
            "continue_final_message": continued,
            "generation_prompt": not continued if added is None else added,
            "arguments": self.chat_template_kwargs,
        }


class ChatRequest(GenerationFields, TemplateFields):
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

    tool_choice: ToolChoice | None = Field(
        None, description="Default: auto with tools, none without."
    )
    parallel_tool_calls: bool | None = Field(
        None, description="False: at most one call; default: true."
    )

    # Known fields of OpenAI's API, with the values that ask for nothing.
    audio: None = None
    function_call: Literal["none"] | None = None
    functions: Empty | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    prediction: None = None
    reasoning_effort: Literal["none"] | None = None
    store: Literal[False] | None = None
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
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    """One choice."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"]
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
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(BaseModel):
    """What a chunk adds to one choice."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"] | None = None
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
