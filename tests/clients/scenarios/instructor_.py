"""instructor: objects through tools, JSON mode and JSON schema mode."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel, Field
from scenario import QUESTION, main


class River(BaseModel, extra="forbid"):
    """A river. Closed: under an open schema a weak model adds keys until its tokens are used up."""

    country: Literal["Austria", "France", "Italy"]
    length_km: Annotated[int, Field(ge=1, le=9000)]
    navigable: bool


class Note(BaseModel):
    """Any object fits: JSON mode shows the schema to the model, and nothing enforces it."""

    text: str = ""


def ask(url: str, model: str, mode: instructor.Mode, kind: Any = River) -> Any:
    client = instructor.from_openai(OpenAI(base_url=f"{url}/v1", max_retries=0), mode=mode)
    asked = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": 128,
    }
    whole, raw = client.create_with_completion(**asked, response_model=kind, max_retries=0)
    *_, streamed = client.create_partial(**asked, response_model=kind, max_retries=0)
    return {
        "object": whole.model_dump(),
        "streamed": streamed.model_dump(),
        "usage": raw.usage.model_dump(),
    }


def tools(url: str, model: str) -> Any:
    return ask(url, model, instructor.Mode.TOOLS)


def json(url: str, model: str) -> Any:
    return ask(url, model, instructor.Mode.JSON, Note)


def json_schema(url: str, model: str) -> Any:
    return ask(url, model, instructor.Mode.JSON_SCHEMA)


main({"tools": tools, "json": json, "json_schema": json_schema})
