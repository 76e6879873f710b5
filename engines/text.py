"""Text to token ids and back: tokenizer, chat template, incremental decoding.

Built from the files of a Hugging Face model directory with `tokenizers` and `jinja2` alone, so
that a server needs no transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engines.chat_template.template import ChatTemplate, read_chat_template
from engines.errors import InvalidRequestError, as_engine_directory_error
from engines.sampling import SamplingParams
from maskgen.format.model_directory import end_token_ids
from maskgen.format.tokenizer import ModelTokenizer, TextEncodingError

_INCOMPLETE = "\ufffd"
_LONGEST_CHARACTER = 4  # bytes of UTF-8, and so tokens
_CONTEXT_TOKENS = 16
_LONGEST_WAIT = 32  # tokens without a complete character at the end: no text, nothing to wait for


class TextCodec:
    """Tokenizer and chat template of one model directory.

    Attributes:
        bos_token_id: None if the model has none.
        eos_token_ids: tokens that end a turn.

    Raises:
        EngineDirectoryError: a file of the tokenizer is missing or malformed, or the chat template
            is malformed.
    """

    def __init__(self, directory: Path) -> None:
        with as_engine_directory_error(directory):
            self._tokenizer = ModelTokenizer(directory)
            self.eos_token_ids = end_token_ids(directory, self._tokenizer.eos_token_id)
            self._template = read_chat_template(
                directory, self._tokenizer.config, self._tokenizer.special_tokens
            )
        self.bos_token_id = self._tokenizer.bos_token_id

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def tokenizer(self) -> Tokenizer:
        """The underlying `tokenizers.Tokenizer`."""
        return self._tokenizer.backend

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Name -> text of the special tokens that are set, such as `bos_token`."""
        return self._tokenizer.special_tokens

    @property
    def config(self) -> Mapping[str, Any]:
        """What tokenizer_config.json says; empty if there is none."""
        return self._tokenizer.config

    @property
    def stray_tokens(self) -> Mapping[int, str]:
        """Id -> text of tokens that the model has no embedding for."""
        return self._tokenizer.stray_tokens

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Other threads run meanwhile.

        Raises:
            InvalidRequestError: the text is no Unicode text (it holds half a surrogate pair), or
                holds a token that the model has no embedding for.
        """
        try:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except TextEncodingError as error:
            raise InvalidRequestError(str(error)) from error

    def token_starts(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Where in `text` each token of `encode` begins, in characters.

        Raises:
            InvalidRequestError: as `encode`.
        """
        try:
            return self._tokenizer.token_starts(text, add_special_tokens=add_special_tokens)
        except TextEncodingError as error:
            raise InvalidRequestError(str(error)) from error

    def token_positions(self, token_ids: Sequence[int]) -> list[int]:
        """Where in the text of `token_ids`, special tokens included, each begins, in characters."""
        stream, positions = self.stream(skip_special_tokens=False), []
        for token_id in token_ids:
            positions.append(stream.position)
            stream.push(token_id)
        return positions

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def token_spellings(self, token_ids: Sequence[int]) -> list[str]:
        """Tokens as the vocabulary spells them; empty for ids that it does not hold."""
        return [self.tokenizer.id_to_token(token_id) or "" for token_id in token_ids]

    def stream(
        self, prompt_token_ids: Sequence[int] = (), *, skip_special_tokens: bool = True
    ) -> TextStream:
        """An incremental decoder that continues after `prompt_token_ids`."""
        return TextStream(self.tokenizer, prompt_token_ids, skip_special_tokens=skip_special_tokens)

    def stream_of(self, params: SamplingParams, prompt_token_ids: Sequence[int]) -> TextStream:
        """The decoder of an answer, as its request wants it."""
        return self.stream(prompt_token_ids, skip_special_tokens=params.skip_special_tokens)

    @property
    def template(self) -> ChatTemplate | None:
        """The chat template, if the model has one."""
        return self._template

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Prompt text of a conversation, by the model's chat template. May take seconds.

        Takes what `ChatTemplate.render` takes.

        Raises:
            InvalidRequestError: the model has no chat template, or as `ChatTemplate.render`.
        """
        if self._template is None:
            raise InvalidRequestError(
                "this model has no chat template; use /v1/completions", param="messages"
            )
        return self._template.render(
            messages,
            generation_prompt=generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            arguments=arguments,
        )


class TextStream:
    """Turns token ids into text piece by piece.

    All pieces together are the text of the ids pushed. A character is emitted when it is complete;
    bytes that never become one are U+FFFD, as in decoding at once.

    Args:
        tokenizer: decodes.
        prompt_token_ids: what comes before, so that the first word keeps its space. A character
            that the prompt begins and does not end is left out of it.
        skip_special_tokens: special tokens are no text.

    Attributes:
        position: whole characters of the text so far, those included that are not emitted yet.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._sent = self.position = 0
        self._ids = self._context(prompt_token_ids)
        self._emitted = len(self._decode(self._ids))  # characters, of the text of these ids
        self._boundary = len(self._ids)  # before it, all characters are complete

    def push(self, token_id: int) -> str:
        """Text that `token_id` completes; empty while a character is incomplete."""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        if not text.endswith(_INCOMPLETE):
            new, self._emitted = text[self._emitted :], len(text)
            self._forget()
        elif len(self._ids) - self._boundary <= _LONGEST_WAIT:
            whole = len(text.rstrip(_INCOMPLETE)) - self._emitted
            self.position = self._sent + max(0, whole)
            return ""
        else:
            new = self._give_up(text)
        self._sent = self.position = self._sent + len(new)
        return new

    def flush(self) -> str:
        """What is held of a character that stays incomplete: as many U+FFFD as in decoding."""
        new = self._decode(self._ids)[self._emitted :]
        self._emitted += len(new)
        return new

    def _forget(self) -> None:
        """Drop ids that the text of later ones does not depend on. All characters are complete."""
        if len(self._ids) > _CONTEXT_TOKENS:
            recent = self._ids[self._boundary :]
            if text := self._decode(recent):
                self._ids, self._emitted = recent, len(text)
        self._boundary = len(self._ids)

    def _give_up(self, text: str) -> str:
        """Emit what has no end: only the last bytes may still become a character."""
        run = len(text) - len(text.rstrip(_INCOMPLETE))
        held = min(run, _LONGEST_CHARACTER - 1)
        new = text[self._emitted : len(text) - held]
        self._ids, self._boundary = self._ids[-_LONGEST_CHARACTER:], 0
        self._emitted = max(0, len(self._decode(self._ids)) - held)
        return new

    def _context(self, prompt: Sequence[int]) -> list[int]:
        for size in (_CONTEXT_TOKENS, len(prompt)):
            ids = list(prompt[-size:])
            for _ in range(_LONGEST_CHARACTER - 1):
                if self._decode(ids).endswith(_INCOMPLETE):
                    ids.pop()
            if self._decode(ids):
                return ids
        return []

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=self._skip)
        return text
