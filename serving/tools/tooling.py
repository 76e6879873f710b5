"""How this server's model is given tools, and what one request makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from engines.errors import InvalidRequestError
from engines.sampling import SamplingParams
from engines.text import TextCodec
from serving.errors import invalid
from serving.schemas.tools import FunctionChoice, FunctionTool
from serving.tools.call_parser import CallParser
from serving.tools.formats import FORMATS, CallFormat, FormatName, is_special, recognised
from serving.tools.grammar import ANY_ARGUMENTS, NO_ARGUMENTS, CallGrammar, check_schema
from serving.tools.prompt import in_plain_words

Mode = Literal["auto", "required", "named"]


class Tooling:
    """The tools of one model.

    Args:
        codec: of the model.
        chosen: a format's name, or `auto` to recognise it from the chat template.
        any_whitespace: arguments that are enforced may be laid out in any way.
    """

    def __init__(
        self, codec: TextCodec, chosen: FormatName | Literal["auto"], any_whitespace: bool
    ) -> None:
        template = codec.template
        self.form = recognised(template) if chosen == "auto" else FORMATS[chosen]
        self.prompt: Literal["template", "plain"] = (
            "template" if template is not None and template.takes_tools else "plain"
        )
        self._codec = codec
        self._any_whitespace = any_whitespace

    def for_template(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[FunctionTool]
    ) -> tuple[list[Mapping[str, Any]], list[dict[str, Any]] | None]:
        """Messages and tools as the chat template takes them."""
        shown = [tool.for_template() for tool in tools]
        if self.prompt == "template":
            return list(messages), shown or None
        return list(in_plain_words(messages, shown)), None

    def plan(
        self,
        tools: Sequence[FunctionTool] | None,
        choice: Literal["none", "auto", "required"] | FunctionChoice | None,
        parallel: bool | None,
    ) -> ToolPlan | None:
        """What a request asks of tools; None if nothing.

        Raises:
            ApiError: 400 naming the field, for a choice without tools or of one that is not there,
                and for two tools of one name.
        """
        if not tools:
            if choice in (None, "none", "auto"):
                return None
            raise invalid("tool_choice needs tools", "tool_choice")
        names = [tool.function.name for tool in tools]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise invalid(
                    f"tools[{index}].function.name: there is a function {name!r} already",
                    f"tools[{index}].function.name",
                )
        if choice == "none":
            return None
        several = parallel is not False
        if isinstance(choice, FunctionChoice):
            wanted = choice.function.name
            if wanted not in names:
                raise invalid(
                    f"tool_choice: there is no function {wanted!r} among tools", "tool_choice"
                )
            named = [tool for tool in tools if tool.function.name == wanted]
            return ToolPlan(self.form, "named", tuple(named), tuple(tools), False)
        mode: Mode = "required" if choice == "required" else "auto"
        return ToolPlan(self.form, mode, tuple(tools), tuple(tools), several)

    def constrain(self, sampling: SamplingParams, plan: ToolPlan) -> SamplingParams:
        """Sampling under which the answer holds calls of the right form, where that is asked for.

        Raises:
            ApiError: 400 naming the tool whose schema cannot be enforced, or the constraint that
                cannot be combined with tools.
        """
        markers = (self.form.opening, self.form.closing)
        shown = sampling.skip_special_tokens and not any(
            is_special(self._codec, marker) for marker in markers
        )
        sampling = replace(sampling, skip_special_tokens=shown)
        if plan.mode != "auto":
            grammar = self._grammar(plan).forced()
            return replace(sampling, structured=grammar)
        given = sampling.structured
        strict = any(tool.function.strict for tool in plan.callable)
        if given is None and not strict:
            return sampling
        if given is not None and given.kind not in ("json_schema", "json_object"):
            raise invalid(
                f"structured_outputs: {given.kind} cannot be combined with tools that the model may"
                ' call; set tool_choice to "none", or use a JSON schema',
                "structured_outputs",
            )
        schema = None if given is None else given.value or '{"type": "object"}'
        return replace(sampling, structured=self._grammar(plan).free(schema))

    def _grammar(self, plan: ToolPlan) -> CallGrammar:
        enforced = plan.mode != "auto"
        schemas = {}
        for index, tool in enumerate(plan.callable):
            function = tool.function
            bound = enforced or function.strict
            schema = function.parameters if function.parameters is not None else NO_ARGUMENTS
            try:
                check_schema(schema)
                schemas[function.name] = schema if bound else ANY_ARGUMENTS
            except InvalidRequestError as error:
                param = f"tools[{index}].function.parameters"
                raise invalid(f"{param}: {error}", param) from error
        return CallGrammar(
            self.form,
            self._codec,
            schemas,
            parallel=plan.parallel,
            any_whitespace=self._any_whitespace,
        )


@dataclass(frozen=True)
class ToolPlan:
    """What one request asks of tools.

    Attributes:
        form: how the model writes calls.
        mode: whether it may call, must call, or must call one function.
        callable: the functions that it may call.
        shown: the functions that it is told of.
        parallel: whether it may make several calls.
    """

    form: CallFormat
    mode: Mode
    callable: tuple[FunctionTool, ...]
    shown: tuple[FunctionTool, ...]
    parallel: bool

    def parser(self) -> CallParser:
        """Reads one choice."""
        names = [tool.function.name for tool in self.callable]
        return CallParser(self.form, names, self.parallel)
