"""Text to token ids and back: tokenizer, chat template, incremental decoding.

Built from the files of a Hugging Face model directory with `tokenizers` and `jinja2` alone, so
that a server needs no transformers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from engines.errors import (
    EngineDirectoryError,
    InvalidRequestError,
    as_engine_directory_error,
)
from maskgen.format.model_directory import end_token_ids

TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


class TextCodec:
    """Tokenizer and chat template of one model directory.

    Raises:
        EngineDirectoryError: `tokenizer.json` is missing or unreadable.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise EngineDirectoryError(f"{path} is missing: a fast tokenizer is needed")
        self._tokenizer = Tokenizer.from_file(str(path))
        config = _read_json(directory / "tokenizer_config.json")
        self._special = {
            name: _token_text(config.get(name)) for name in ("bos_token", "eos_token", "pad_token")
        }
        self.bos_token_id = self._token_id(self._special["bos_token"])
        self.eos_token_ids = self._find_eos(directory)
        self._template = self._compile_template(directory, config)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def tokenizer(self) -> Tokenizer:
        """The underlying `tokenizers.Tokenizer`."""
        return self._tokenizer

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Other threads run meanwhile."""
        # The plain `encode` holds the interpreter lock for as long as it takes; this one does not.
        encoded = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoded[0].ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token_id: int) -> str:
        """Text of one token by itself; incomplete UTF-8 shows as U+FFFD."""
        return self.decode([token_id], skip_special_tokens=False)

    def stream(self, prompt_token_ids: Sequence[int] = ()) -> TextStream:
        """An incremental decoder that continues after `prompt_token_ids`."""
        return TextStream(self._tokenizer, prompt_token_ids)

    def render_chat(
        self, messages: Sequence[dict[str, Any]], *, generation_prompt: bool = True
    ) -> str:
        """Prompt text of a conversation, by the model's chat template.

        Raises:
            InvalidRequestError: the model has no chat template, or the template refuses the
                messages.
        """
        if self._template is None:
            raise InvalidRequestError(
                "this model has no chat template; use /v1/completions", param="messages"
            )
        try:
            return self._template.render(
                messages=list(messages), add_generation_prompt=generation_prompt, **self._special
            )
        except jinja2.TemplateError as error:
            raise InvalidRequestError(
                f"the chat template refuses these messages: {error}", param="messages"
            ) from error

    def _token_id(self, token: str | None) -> int | None:
        if token is None:
            return None
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def _find_eos(self, directory: Path) -> tuple[int, ...]:
        with as_engine_directory_error():
            return end_token_ids(directory, self._token_id(self._special["eos_token"]))

    def _compile_template(self, directory: Path, config: dict[str, Any]) -> jinja2.Template | None:
        path = directory / "chat_template.jinja"
        source = path.read_text() if path.is_file() else config.get("chat_template")
        if not isinstance(source, str):
            return None
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise_template_error
        environment.filters["tojson"] = _to_json
        return environment.from_string(source)


class TextStream:
    """Turns token ids into text piece by piece, never emitting half a character."""

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(list(prompt_token_ids), skip_special_tokens=True)

    def push(self, token_id: int) -> str:
        """Text that `token_id` completes; empty while a character is incomplete."""
        return self._stream.step(self._tokenizer, token_id) or ""


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise EngineDirectoryError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise EngineDirectoryError(f"{path} holds {type(value).__name__}, expected an object")
    return value


def _token_text(entry: Any) -> str | None:
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _raise_template_error(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    # Not jinja's own filter: that one escapes <, > and &, which models were not trained on.
    return json.dumps(value, ensure_ascii=False, indent=indent)
