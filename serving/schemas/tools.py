"""Tools in bodies of chat requests and answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator

from serving.schemas.common import StrictModel
from serving.schemas.nesting import MAX_LEVELS, too_deep

MAX_TOOLS = 128

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:/-]{1,128}$")]


class FunctionDefinition(StrictModel):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = Field(None, max_length=16384)
    parameters: dict[str, Any] | None = Field(
        None, description="JSON schema of the arguments; without it there are none."
    )
    strict: bool | None = Field(None, description="Hold calls to the schema, also when free.")

    @field_validator("parameters")
    @classmethod
    def _check_depth(cls, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        if too_deep(parameters):
            raise ValueError(f"is nested more than {MAX_LEVELS} levels deep")
        return parameters


class FunctionTool(StrictModel):
    """One entry of `tools`."""

    type: Literal["function"]
    function: FunctionDefinition

    def for_template(self) -> dict[str, Any]:
        """What chat templates read."""
        return self.model_dump(exclude_none=True, exclude={"function": {"strict"}})


class ChosenFunction(StrictModel):
    """The name in `tool_choice`."""

    name: FunctionName


class FunctionChoice(StrictModel):
    """`tool_choice` of one function."""

    type: Literal["function"]
    function: ChosenFunction


Tools = Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)]
ToolChoice = Literal["none", "auto", "required"] | FunctionChoice


class CalledFunction(StrictModel):
    """A call in the history."""

    name: FunctionName
    arguments: str = Field(description="JSON, as it was received.")
    parsed_arguments: Any = Field(
        None, description="What OpenAI's clients made of arguments; not read."
    )


class ToolCallMessage(StrictModel):
    """One entry of an assistant message's `tool_calls`."""

    id: str = Field(min_length=1, max_length=256)
    type: Literal["function"] = "function"
    function: CalledFunction


class FunctionCall(BaseModel):
    """The function of a call in an answer; `arguments` is JSON."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call in an answer."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class FunctionCallDelta(BaseModel):
    """What a chunk adds to a call's function."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(BaseModel):
    """What a chunk adds to a call; `id`, `type` and the name come with the first."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCallDelta
