"""Grammars that hold an answer to calls of the right form, in llguidance's dialect of Lark.

See https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md#tool-calling.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from engines.decoding.json_schema import compiles, prepared_schema
from engines.errors import InvalidRequestError
from engines.sampling import StructuredOutput
from engines.text import TextCodec
from serving.tools.formats import CallFormat

MAX_CALLS = 8
"""Most calls of one answer that must call: a weak model would go on until its tokens are used."""

Schema = Mapping[str, Any]
NO_ARGUMENTS: Schema = {"type": "object", "properties": {}, "additionalProperties": False}
ANY_ARGUMENTS: Schema = {"type": "object"}


class CallGrammar:
    """Writes the grammars of one request.

    Args:
        form: how the model writes calls.
        codec: knows which markers are tokens.
        functions: name -> schema of the arguments.
        parallel: whether there may be several calls.
        any_whitespace: the arguments may be laid out in any way.
    """

    def __init__(
        self,
        form: CallFormat,
        codec: TextCodec,
        functions: Mapping[str, Schema],
        *,
        parallel: bool,
        any_whitespace: bool,
    ) -> None:
        self._form = form
        self._codec = codec
        self._functions = functions
        self._most = MAX_CALLS if parallel else 1
        self._any_whitespace = any_whitespace

    def forced(self) -> StructuredOutput:
        """The answer is one call or several, and nothing else.

        Raises:
            InvalidRequestError: a schema is beyond what can be compiled.
        """
        return self._lark(["start: calls", *self._calls()])

    def free(self, text_schema: str | None = None) -> StructuredOutput:
        """The answer is text, with calls of the right form in it, or behind it.

        Args:
            text_schema: of the answer, where it is JSON and no call.

        Raises:
            InvalidRequestError: as `forced`.
        """
        calls = self._calls()
        if text_schema is not None:
            schema = prepared_schema(text_schema, any_whitespace=self._any_whitespace)
            return self._lark(["start: calls | json", f"json: %json {schema}", *calls])
        if self._form.bare:
            return self._lark(["start: calls | OTHER?", "OTHER: /[^{\\[\\s](.|\\n)*/", *calls])
        begin = self._marker(self._form.opening)
        rest = [line for line in calls if not line.startswith(("calls:", "call:"))]
        opened = f"TEXT {begin}" if begin.startswith("<") else "opened"
        return self._lark(
            [
                f"start: ({opened} behind)* TEXT",
                f"opened[lazy]: TEXT {begin}" if opened == "opened" else "",
                f"behind: {self._behind()}",
                "TEXT: /(.|\\n)*/",
                *rest,
            ]
        )

    def _calls(self) -> list[str]:
        """Rules: `calls`, `call` (with its marker), `object`, and one for each function."""
        form, more = self._form, self._most - 1
        call = f"{self._marker(form.opening)} {self._behind()}" if not form.bare else "object"
        if form.listed and not form.bare:
            calls = "call"
        elif form.listed:
            several = f' | "[" object ({_text(form.separator)} object){{1,{more}}} "]"'
            calls = "call" + (several if more else "")
        else:
            calls = f"call ({_text(form.separator)} call){{0,{more}}}" if more else "call"
        if form.bare and form.opening:
            calls = f"{self._marker(form.opening)}? {calls}"
        names = " | ".join(f"f{index}" for index in range(len(self._functions)))
        return [
            f"calls: {calls}",
            f"call: {call}",
            f'object: "{{" ({names}) "}}"',
            *(
                f"f{index}: {self._body(name, schema)}"
                for index, (name, schema) in enumerate(self._functions.items())
            ),
        ]

    def _behind(self) -> str:
        """What follows the marker, up to the end of a call or of a list of calls."""
        form, more = self._form, self._most - 1
        if form.listed:
            further = f"({_text(form.separator)} object){{0,{more}}} " if more else ""
            return f'"[" object {further}"]"'
        return f'"\\n" object "\\n" {self._marker(form.closing)}' if form.closing else "object"

    def _body(self, name: str, schema: Schema) -> str:
        # Frameworks send schemas that say nothing of the type, `{}` too.
        closed = {"type": "object", **schema}
        if "properties" in schema:
            closed = {"additionalProperties": False, **closed}
        source = prepared_schema(json.dumps(closed), any_whitespace=self._any_whitespace)
        begin = f'"name": {json.dumps(name)}, "{self._form.arguments}": '
        return f"{_text(begin)} %json {source}"

    def _marker(self, marker: str) -> str:
        """A marker that is one token must be that token; the matcher knows no text of it."""
        token_id = self._codec.tokenizer.token_to_id(marker)
        added = self._codec.tokenizer.get_added_tokens_decoder()
        return f"<[{token_id}]>" if token_id in added else _text(marker)

    def _lark(self, rules: Sequence[str]) -> StructuredOutput:
        source = "\n".join(["%llguidance {}", *filter(None, rules)])
        return StructuredOutput("lark", source)


def check_schema(schema: Schema) -> None:
    """Raise InvalidRequestError if a schema of arguments is none of an object, or too large."""
    prepared_schema(json.dumps(schema))
    kind = schema.get("type", "object")
    if kind != "object":
        raise InvalidRequestError(f"arguments are an object, the schema's type is {kind!r}")


def can_be_enforced(schema: Schema) -> bool:
    """Whether calls can be held to a schema of arguments."""
    return schema.get("type", "object") == "object" and compiles(json.dumps(schema))


def _text(text: str) -> str:
    return json.dumps(text)
