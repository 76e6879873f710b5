"""The forms in which families of models write calls of functions."""

from __future__ import annotations

import secrets
import string
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

from engines.chat_template.template import ChatTemplate
from engines.text import TextCodec

FormatName = Literal["hermes", "llama3_json", "mistral", "json"]


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How calls look in an answer's text.

    Attributes:
        name: what the setting `tool_parser` calls it.
        opening: comes before a call, or before a list of calls; empty: an answer that begins with
            a brace or a bracket is a call, if it names a function that there is.
        closing: comes after a call; empty: nothing does.
        arguments: the key of a call's arguments.
        bare: a call may begin an answer without `opening`.
        listed: several calls are one JSON list.
        separator: between two calls.
        named: a call may be a name with its arguments behind it, without an object around.
    """

    name: FormatName
    opening: str = ""
    closing: str = ""
    arguments: str = "arguments"
    bare: bool = False
    listed: bool = False
    separator: str = ""
    named: bool = False

    def call_id(self) -> str:
        """A new id for a call; Mistral's templates take only nine letters and digits."""
        if self.name == "mistral":
            return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
        return f"call_{uuid4().hex[:24]}"


FORMATS: dict[FormatName, CallFormat] = {
    form.name: form
    for form in (
        # https://github.com/NousResearch/Hermes-Function-Calling; Qwen2.5 and Qwen3 write the same.
        CallFormat("hermes", opening="<tool_call>", closing="</tool_call>", separator="\n"),
        # https://github.com/meta-llama/llama-models/blob/main/models/llama3_1/prompt_format.md
        CallFormat(
            "llama3_json",
            opening="<|python_tag|>",
            arguments="parameters",
            bare=True,
            separator="; ",
        ),
        # https://github.com/mistralai/mistral-common: a list of objects up to tokenizer v7, then
        # name and arguments.
        CallFormat("mistral", opening="[TOOL_CALLS]", listed=True, separator=", ", named=True),
        CallFormat("json", bare=True, listed=True, separator=", "),
    )
}


def recognised(template: ChatTemplate | None) -> CallFormat:
    """The format that a chat template writes calls in; plain JSON where it shows none."""
    source = template.source if template else ""
    if "<tool_call>" in source and "<function=" not in source:
        return FORMATS["hermes"]
    if "[TOOL_CALLS]" in source:
        return FORMATS["mistral"]
    if "<|python_tag|>" in source or ('"parameters": ' in source and "ipython" in source):
        return FORMATS["llama3_json"]
    return FORMATS["json"]


def is_special(codec: TextCodec, marker: str) -> bool:
    """Whether a marker is a token that answers' texts leave out."""
    token_id = codec.tokenizer.token_to_id(marker) if marker else None
    added = codec.tokenizer.get_added_tokens_decoder()
    return token_id is not None and token_id in added and bool(added[token_id].special)
