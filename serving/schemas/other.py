"""Bodies of the remaining routes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from engines.mask_rules import NAME_PATTERN
from serving.errors import invalid
from serving.schemas.chat import MAX_MESSAGES, Message, TemplateFields
from serving.schemas.common import StrictModel, TokenIds


class MaskCard(BaseModel):
    """The mask behind a model card."""

    name: str
    digest: str
    domain: str
    storage: Literal["base", "patch", "copy"]
    changed_share: float
    resident: bool
    resident_bytes: int


class ModelCard(BaseModel):
    """One entry of `/v1/models`: the base model, or the base model under one mask."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["twofour"] = "twofour"
    root: str
    parent: str | None
    max_model_len: int
    base_digest: str
    mask: MaskCard | None


class ModelList(BaseModel):
    """The answer of `/v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class LoadMaskRequest(StrictModel):
    """Load a mask file under a name."""

    mask_name: str = Field(pattern=NAME_PATTERN)
    mask_path: str = Field(
        min_length=1, max_length=1024, description="Path of the file within the mask folder."
    )


class UnloadMaskRequest(StrictModel):
    """Forget a mask."""

    mask_name: str = Field(pattern=NAME_PATTERN)


class UnloadMaskResponse(BaseModel):
    """The mask is gone; requests that run with it finish."""

    unloaded: str


class TokenizeRequest(TemplateFields):
    """Count or inspect the tokens of a text or of a conversation."""

    model: str | None = Field(None, max_length=256)
    prompt: str | None = None
    messages: (
        Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
        | None
    ) = None
    add_special_tokens: bool | None = Field(
        None, description="Default: true for a prompt, false for messages."
    )
    return_token_strs: bool | None = Field(
        None, description="Also give the tokens as the vocabulary spells them."
    )

    @model_validator(mode="after")
    def _one_input(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise invalid("give either prompt or messages", "prompt")
        for name in TemplateFields.model_fields if self.messages is None else ():
            if getattr(self, name) is not None:
                raise invalid(f"{name} is for messages; a prompt has no chat template", name)
        return self


class TokenizeResponse(BaseModel):
    """Token ids of a text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(StrictModel):
    """Token ids to turn into text."""

    model: str | None = Field(None, max_length=256)
    tokens: TokenIds


class DetokenizeResponse(BaseModel):
    """The text of token ids."""

    prompt: str


class TokenizerInfo(BaseModel, extra="allow"):
    """What tokenizer_config.json says, with the special tokens and the chat template in use."""

    tokenizer_class: str
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    chat_template: str | None = None
