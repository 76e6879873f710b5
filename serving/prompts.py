"""From request texts to token ids, within the model's context."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from engines.errors import InvalidRequestError
from engines.text import TextCodec
from serving.errors import ApiError, from_engine_error, invalid
from serving.schemas.chat import Message, TemplateFields
from serving.schemas.completions import PromptField
from serving.schemas.tools import FunctionTool
from serving.tools.tooling import Tooling

T = TypeVar("T")

# Tokenizing this many characters takes about a millisecond.
INLINE_CHARS = 4096


class Prompts:
    """Tokenizes off the event loop what would hold it up."""

    def __init__(
        self, codec: TextCodec, context_length: int, vocab_size: int, tooling: Tooling
    ) -> None:
        self._codec = codec
        self._tooling = tooling
        self._context = context_length
        self._vocab_size = vocab_size
        self._thread = ThreadPoolExecutor(1, "tokenizer")
        self._long_texts = ThreadPoolExecutor(1, "tokenizer-of-long-texts")
        # A template is a program: even for a short conversation it may take seconds.
        self._templates = ThreadPoolExecutor(1, "chat-template")
        longest = max(map(len, codec.tokenizer.get_vocab(with_added_tokens=True)))
        # No text of more characters fits: known before it is tokenized. Normalizers may merge
        # characters, hence the factor.
        self._max_chars = 4 * longest * context_length

    async def completion(
        self, prompt: PromptField, *, add_special_tokens: bool, scores_only: bool = False
    ) -> list[tuple[int, ...]]:
        """Token ids of each prompt of a completion request.

        Args:
            prompt: the request's field.
            add_special_tokens: whether texts get the tokenizer's special tokens.
            scores_only: nothing is generated, so a prompt may fill the whole context.

        Raises:
            ApiError: 400; a prompt is empty, too long, or holds an unknown token id.
        """
        found: list[list[int]] = []
        if isinstance(prompt, str):
            found.append(await self.encode(prompt, add_special_tokens=add_special_tokens))
        else:
            for item in [prompt] if prompt and isinstance(prompt[0], int) else prompt:
                if isinstance(item, str):
                    found.append(await self.encode(item, add_special_tokens=add_special_tokens))
                elif isinstance(item, list):
                    found.append(item)
        reserved = 0 if scores_only else 1
        return [self._check(tuple(ids), "prompt", reserved) for ids in found]

    async def token_starts(
        self, prompt: PromptField, token_ids: Sequence[tuple[int, ...]], *, add_special_tokens: bool
    ) -> list[list[int]]:
        """Where in the text of each prompt its tokens begin, in characters.

        Args:
            prompt: the request's field.
            token_ids: what `completion` made of it.
            add_special_tokens: as there.
        """
        given = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]

        def starts(item: object, ids: tuple[int, ...]) -> list[int]:
            if isinstance(item, str):
                return self._codec.token_starts(item, add_special_tokens=add_special_tokens)
            return self._codec.token_positions(ids)

        return [
            await self._run(partial(starts, item, ids), len(ids))
            for item, ids in zip(given, token_ids, strict=True)
        ]

    async def chat(
        self, messages: Sequence[Message], tools: Sequence[FunctionTool], options: TemplateFields
    ) -> tuple[int, ...]:
        """Token ids of a conversation, by the model's chat template.

        Raises:
            ApiError: 400; the template refuses the messages, or they are too long.
        """
        # The template writes the special tokens itself.
        ids = await self.encode(
            await self.render(messages, tools, options), add_special_tokens=False, param="messages"
        )
        return self._check(tuple(ids), "messages", 1)

    async def render(
        self, messages: Sequence[Message], tools: Sequence[FunctionTool], options: TemplateFields
    ) -> str:
        """The text of a conversation, by the model's chat template.

        Args:
            messages: of the request.
            tools: that the model is told of.
            options: of the request.

        Raises:
            ApiError: 400; the template refuses the messages, or they are too long.
        """
        spoken, shown = self._tooling.for_template([m.for_template() for m in messages], tools)
        self._check_chars(sum(len(message["content"]) for message in spoken), "messages")
        self._check_chars(len(json.dumps(shown)), "tools")
        render = partial(self._codec.render_chat, spoken, tools=shown, **options.for_template())
        try:
            return await asyncio.get_running_loop().run_in_executor(self._templates, render)
        except InvalidRequestError as error:
            raise from_engine_error(error) from error

    async def encode(
        self, text: str, *, add_special_tokens: bool, param: str = "prompt"
    ) -> list[int]:
        """Token ids of a prompt, perhaps more than the context holds.

        Raises:
            ApiError: 400; the text is longer than any that could fit, holds half a surrogate
                pair, or a token that the model has no embedding for.
        """
        self._check_chars(len(text), param)
        try:
            return await self._run(
                lambda: self._codec.encode(text, add_special_tokens=add_special_tokens), len(text)
            )
        except InvalidRequestError as error:
            raise invalid(f"{param}: {error}", param) from error

    async def apart(self, work: Callable[[], T], size: int) -> T:
        """Do `work` on a text that is no prompt, and may be of any length.

        Long ones have a thread of their own, so that no prompt waits for them.

        Args:
            work: what to do.
            size: characters or tokens that it goes through.
        """
        return await self._run(work, size, self._long_texts)

    def check_room(
        self, prompts: Sequence[tuple[int, ...]], max_tokens: int | None, param: str | None
    ) -> None:
        """Raise a 400 if a prompt and its answer exceed the context together.

        Args:
            prompts: token ids.
            max_tokens: of the answer; None is what the context leaves.
            param: the field that asks for so many; None if none does, and it is the default of
                `max_tokens`.
        """
        longest = max(map(len, prompts))
        if max_tokens is None or longest + max_tokens <= self._context:
            return
        held = f"the context holds {self._context} tokens; the prompt has {longest} and"
        if param is None:
            told = (
                f"{held} {max_tokens} are to be generated, the default of max_tokens; shorten the"
                " prompt or send max_tokens"
            )
        else:
            told = f"{held} {max_tokens} are to be generated; shorten the prompt or lower {param}"
        raise invalid(told, param or "prompt", "context_length_exceeded")

    def check_ids(self, token_ids: Sequence[int], param: str) -> None:
        """Raise a 400 if a token id is not in the vocabulary."""
        if token_ids and max(token_ids) >= self._vocab_size:
            raise invalid(
                f"{param}: token id {max(token_ids)} is not below the vocabulary size"
                f" {self._vocab_size}",
                param,
            )

    def close(self) -> None:
        """Stop the threads."""
        for thread in (self._thread, self._long_texts, self._templates):
            thread.shutdown(wait=False, cancel_futures=True)

    async def _run(
        self, work: Callable[[], T], size: int, thread: ThreadPoolExecutor | None = None
    ) -> T:
        if size <= INLINE_CHARS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(thread or self._thread, work)

    def _check(self, token_ids: tuple[int, ...], param: str, reserved: int) -> tuple[int, ...]:
        """The ids, if they leave `reserved` tokens of the context to the answer."""
        if not token_ids:
            raise invalid(f"{param} is empty: there is no token to continue", param)
        self.check_ids(token_ids, param)
        if len(token_ids) + reserved > self._context:
            raise self._too_long(f"has {len(token_ids)} tokens", param, reserved)
        return token_ids

    def _check_chars(self, chars: int, param: str) -> None:
        if chars > self._max_chars:
            raise self._too_long(f"has {chars} characters", param)

    def _too_long(self, length: str, param: str, reserved: int = 0) -> ApiError:
        answer = ", of which at least one must be left for the answer" if reserved else ""
        return invalid(
            f"{param} {length}; the context holds {self._context} tokens{answer}",
            param,
            "context_length_exceeded",
        )
