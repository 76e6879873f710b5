"""Bodies of `/v1/completions`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from engines.sampling import MAX_LOGPROBS
from serving.errors import invalid
from serving.schemas.common import (
    MAX_TOKEN_ID,
    GenerationFields,
    PromptLogprobs,
    TokenIds,
    Usage,
)

MAX_PROMPTS = 128

PromptField = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    | Annotated[TokenIds, Field(min_length=1)]
    | Annotated[
        list[Annotated[TokenIds, Field(min_length=1)]],
        Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True),
    ]
)


class CompletionRequest(GenerationFields):
    """A text completion."""

    prompt: PromptField = Field(description="Text, token ids, or a list of either.")
    max_tokens: int | None = Field(
        None, ge=0, le=MAX_TOKEN_ID, description="Default 16; 0 only scores the prompt."
    )
    best_of: int | None = Field(None, ge=0, le=128, description="Must equal n.")
    echo: bool | None = Field(None, description="Put the prompt in front of the answer.")
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_special_tokens: bool | None = Field(
        None, description="Whether text prompts get the tokenizer's special tokens; default true."
    )
    suffix: None = None

    @model_validator(mode="after")
    def _check(self) -> CompletionRequest:
        if self.best_of not in (None, self.n or 1):
            raise invalid(f"best_of ({self.best_of}) must equal n ({self.n or 1})", "best_of")
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise invalid(
                "max_tokens may be 0 only together with echo or prompt_logprobs", "max_tokens"
            )
        return self


class CompletionLogprobs(BaseModel):
    """Log-probs of a choice, position by position."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One choice, or what a chunk adds to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: PromptLogprobs | None = None


class CompletionResponse(BaseModel):
    """The answer to a completion request, or one chunk of it."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    system_fingerprint: str
