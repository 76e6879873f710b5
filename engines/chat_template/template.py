"""The chat template of a model directory: which one it is, and what it makes of a conversation.

It means what transformers 5 makes of it (`_cached_compile_jinja_template` and
`render_jinja_template` in `utils/chat_template_utils.py`, `_from_pretrained` and
`get_chat_template` in `tokenization_utils_base.py`), without documents. What it may cost is
bounded, see `engines.chat_template.render_budget`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.utils import Namespace

from engines.chat_template.render_budget import RenderingBudget, TemplateLimitError, with_budget
from engines.chat_template.sandbox import CountingSandbox
from engines.errors import EngineDirectoryError, InvalidRequestError
from maskgen.format.special_tokens import TOKENIZER_CONFIG_FILE
from maskgen.format.text_files import template_files

DEFAULT_TEMPLATE = "default"
MAX_SOURCE_CHARACTERS = 1 << 20

_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_MAX_ERROR_CHARACTERS = 500
# Where a message that is to be continued ends: characters for private use, which no filter changes,
# and a space that shows whether a template trims.
_MARK = "\uf8a1\uf8a7\uf8a3 "


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the template.
        where: the file it comes from, for errors.
        special_tokens: name -> text of those that are set, such as `bos_token`.

    Attributes:
        source: as it was given.
        takes_tools: whether it reads the variable `tools`.

    Raises:
        EngineDirectoryError: the template is malformed.
    """

    def __init__(self, source: str, where: Path, special_tokens: Mapping[str, str]) -> None:
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise EngineDirectoryError(
                f"{where}: the chat template has {len(source)} characters,"
                f" at most {MAX_SOURCE_CHARACTERS} are allowed"
            )
        self._special_tokens = dict(special_tokens)
        self.source = source
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            self.takes_tools = "tools" in find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise EngineDirectoryError(
                f"{where}: the chat template is malformed, line {error.lineno}: {error.message}"
            ) from None
        except Exception as error:  # of the parser, or of Python's compiler
            raise EngineDirectoryError(
                f"{where}: the chat template is malformed: {_reason(error)}"
            ) from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Prompt text of a conversation.

        Takes as long as the template's limits allow: seconds. Call it off the event loop.

        Args:
            messages: of the conversation.
            generation_prompt: end with the beginning of an answer.
            continue_final_message: end in the middle of the last message, which is to be continued.
            tools: the functions that the model may call, in OpenAI's form.
            arguments: further variables, such as `enable_thinking`; plain JSON.

        Raises:
            InvalidRequestError: the template refuses the messages, or would do more for them than
                one rendering may; the last message cannot be continued; or an argument has the
                name of what the template is given anyway.
        """
        spoken = [_message(message) for message in messages]
        if continue_final_message:
            spoken[-1:] = [_marked(spoken)]
        variables: dict[str, Any] = {
            **self._special_tokens,
            "messages": spoken,
            "tools": None if tools is None else [dict(tool) for tool in tools],
            "documents": None,
            "add_generation_prompt": generation_prompt,
        }
        for name in arguments or {}:
            if name in variables or name in self._template.environment.globals:
                raise InvalidRequestError(
                    f"the chat template is given {name[:80]!r} by the server",
                    param="chat_template_kwargs",
                )
        variables |= arguments or {}
        text = self._rendered(variables)
        return _before_mark(text, messages[-1]["content"]) if continue_final_message else text

    def _rendered(self, variables: Mapping[str, Any]) -> str:
        try:
            return with_budget(RenderingBudget(), lambda: self._template.render(variables))
        except TemplateLimitError as error:
            raise InvalidRequestError(
                f"the chat template does too much for these messages: {error}", param="messages"
            ) from None
        except Exception as error:
            # A template is a program: it can raise anything that Python can.
            raise InvalidRequestError(
                f"the chat template refuses these messages: {_reason(error)}", param="messages"
            ) from error


def read_chat_template(
    directory: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> ChatTemplate | None:
    """The template that a model directory's chats use, compiled; None if it has none.

    Files come before tokenizer_config.json; where there are several templates, the one called
    `default` is used.

    Args:
        directory: of a model, or an engine directory.
        config: its tokenizer_config.json.
        special_tokens: name -> text of those that are set.

    Raises:
        EngineDirectoryError: it is malformed or unreadable.
    """
    found = _template_files(directory) or _configured_templates(
        directory / TOKENIZER_CONFIG_FILE, config
    )
    if DEFAULT_TEMPLATE not in found:
        return None
    source, where = found[DEFAULT_TEMPLATE]
    return ChatTemplate(source, where, special_tokens)


def _template_files(directory: Path) -> dict[str, tuple[str, Path]]:
    found = {}
    for path in template_files(directory):
        name = DEFAULT_TEMPLATE if path.parent == directory else path.stem
        try:
            found[name] = (path.read_text(encoding="utf-8"), path)
        except (OSError, UnicodeDecodeError) as error:
            raise EngineDirectoryError(f"{path} is unreadable: {error}") from None
    return found


def _configured_templates(path: Path, config: Mapping[str, Any]) -> dict[str, tuple[str, Path]]:
    given = config.get("chat_template")
    if given is None:
        return {}
    if isinstance(given, list) and all(isinstance(entry, dict) for entry in given):
        given = {entry.get("name"): entry.get("template") for entry in given}
    templates = given if isinstance(given, dict) else {DEFAULT_TEMPLATE: given}
    for source in templates.values():
        if not isinstance(source, str):
            raise EngineDirectoryError(
                f"{path}: chat_template is {type(source).__name__}, expected text or a list of"
                " {name, template}"
            )
    return {str(name): (source, path) for name, source in templates.items()}


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """What a template sees of a message: no fields that are null; reasoning under each name."""
    given = {key: value for key, value in message.items() if value is not None}
    reasoning = next((given[name] for name in _REASONING_FIELDS if name in given), None)
    if reasoning is None:
        return given
    return {"thinking": reasoning, **given, "reasoning_content": reasoning}


def _marked(messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The last message, with a mark where its text ends."""
    last = messages[-1] if messages else {}
    content = last.get("content")
    if not isinstance(content, str):
        raise InvalidRequestError("the last message has no text to continue", param="messages")
    return {**last, "content": content + _MARK}


def _before_mark(text: str, content: str) -> str:
    """What stands before the mark, without white space if the template takes that away."""
    found = text.rfind(_MARK.rstrip())
    if found < 0 or content.strip() not in text:
        raise InvalidRequestError(
            "the chat template does not show the whole last message, so it cannot be continued",
            param="messages",
        )
    before = text[:found] if text.startswith(_MARK, found) else text[:found].rstrip()
    # A template may show a message more than once.
    return before.replace(_MARK, "").replace(_MARK.rstrip(), "")


def _reason(error: Exception) -> str:
    """One line for people, without half characters that no answer could carry."""
    if isinstance(error, RecursionError):
        return "it recurses too deeply"
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, jinja2.TemplateError):
        text = f"{type(error).__name__}: {text}"
    return text.encode("utf-8", "replace").decode()[:_MAX_ERROR_CHARACTERS]


# -- What transformers gives a template


def _environment() -> CountingSandbox:
    environment = CountingSandbox(
        {"tojson": _to_json},
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
    )
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dictionary(),
        "namespace": _Namespace,
    }
    return environment


class _GenerationTag(Extension):
    """`{% generation %}`: marks what an assistant wrote, for training; here it is its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A call, as in transformers: names that the body sets stay within it.
        return nodes.CallBlock(self.call_method("write"), [], [], body).set_lineno(line)

    def write(self, caller: Callable[[], str]) -> str:
        """The body's text."""
        return caller()


class _Dictionary:
    """`dict` without the class's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        """As `dict.fromkeys`."""
        return dict.fromkeys(keys, value)


class _Namespace(Namespace):
    """`namespace` that takes no names with an underscore in front."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that a name may be `self`
        self, *given = args
        attributes = dict(*given, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace holds no names with an underscore in front: {name!r}")


def _raise_exception(message: Any) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Not jinja's own: that one escapes <, > and &, which models were not trained on.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
