"""Offline generation: a model in this process, called without a server and without `await`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

from engines.base import Engine, EngineInfo, GenerationRequest, MaskInfo
from engines.errors import EngineDeadError, InvalidRequestError
from engines.offline.batch import BatchRunner
from engines.offline.loop_thread import LoopThread
from engines.offline.outputs import RequestOutput
from engines.registry import open_engine
from engines.sampling import SamplingParams
from engines.text import TextCodec

T = TypeVar("T")
Prompt: TypeAlias = str | Sequence[int]
"""Text, or token ids."""
ChatMessage: TypeAlias = Mapping[str, str]
"""One message of a conversation: its `role` and its `content`."""


class LLM:
    """An engine directory, opened in this process and used as vLLM's `LLM` is.

    A context manager; `close` ends the engine and frees its memory. Methods may be called from any
    thread, also from one that runs an event loop of its own.

    Args:
        model: an engine directory, as `twofour build` writes it.
        options: what the engine of the directory's target takes; the CPU engine's are described
            in `engines.cpu.options`.

    Raises:
        EngineDirectoryError: the directory cannot be opened.
        ValueError: the engine has no such option, or the value is out of range.
    """

    def __init__(self, model: str | Path, **options: Any) -> None:
        async def open_here() -> Engine:
            return open_engine(Path(model), **options)

        with ExitStack() as stack:
            self._loop = LoopThread("twofour-llm")
            stack.callback(self._loop.close)
            self._engine = self._loop.run(open_here())
            stack.callback(lambda: self._loop.run(self._engine.close()))
            self._resources = stack.pop_all()
        self._runner = BatchRunner(self._engine)
        self._requests = itertools.count()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the engine and free what it holds. Safe to call twice."""
        self._closed = True
        self._resources.close()

    @property
    def codec(self) -> TextCodec:
        """The model's tokenizer and chat template."""
        return self._engine.codec

    def describe(self) -> EngineInfo:
        """What runs: model, masks, and the kernel of each layer shape."""

        async def describe_here() -> EngineInfo:
            return self._engine.describe()

        return self._call(describe_here)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        mask: str | Sequence[str | None] | None = None,
    ) -> list[RequestOutput]:
        """Continue every prompt; all of them run as one batch.

        Args:
            prompts: one prompt or several, each as text or as token ids.
            sampling_params: for all prompts, or one for each; None is `SamplingParams()`, which
                generates until the model ends or its context is full.
            mask: name of a loaded mask for all prompts, or one for each; None is the default mask.

        Returns:
            One output per prompt, in their order.

        Raises:
            InvalidRequestError: a prompt can never run, or there are other numbers of parameters
                or masks than of prompts. The other prompts are not answered either.
            UnknownMaskError: no such mask is loaded.
            EngineError: the engine failed.
        """
        batch = _as_batch(prompts)
        texts = [prompt if isinstance(prompt, str) else None for prompt in batch]
        encoded = [
            tuple(map(int, self.codec.encode(prompt) if isinstance(prompt, str) else prompt))
            for prompt in batch
        ]
        return self._run(texts, encoded, sampling_params, mask)

    def chat(
        self,
        messages: Sequence[ChatMessage] | Sequence[Sequence[ChatMessage]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        mask: str | Sequence[str | None] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several, written as the model's chat template says.

        Args:
            messages: a conversation, or a list of them. A message is a dictionary such as
                `{"role": "user", "content": "Hello"}`.
            sampling_params: as for `generate`.
            mask: as for `generate`.

        Returns:
            One output per conversation; its `prompt` is the text that the template made.

        Raises:
            InvalidRequestError: as `generate`; or the model has no chat template, or it refuses
                the messages.
            The others: as `generate`.
        """
        texts = [self.codec.render_chat(turns) for turns in _as_conversations(messages)]
        # The template writes the special tokens itself.
        encoded = [tuple(self.codec.encode(text, add_special_tokens=False)) for text in texts]
        return self._run(texts, encoded, sampling_params, mask)

    def load_mask(self, name: str, path: str | Path) -> MaskInfo:
        """Load a mask file under `name`.

        Raises:
            MaskError: as `engines.base.Engine.load_mask`.
        """
        return self._call(self._engine.load_mask, name, Path(path))

    def unload_mask(self, name: str) -> None:
        """Forget a mask.

        Raises:
            MaskError, UnknownMaskError: as `engines.base.Engine.unload_mask`.
        """
        self._call(self._engine.unload_mask, name)

    def _run(
        self,
        texts: Sequence[str | None],
        encoded: Sequence[tuple[int, ...]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        mask: str | Sequence[str | None] | None,
    ) -> list[RequestOutput]:
        default = SamplingParams() if sampling_params is None else sampling_params
        samplings = _for_each(default, len(encoded), "sampling_params", SamplingParams)
        masks: list[str | None] = _for_each(mask, len(encoded), "mask", str, type(None))
        default_mask = self.describe().default_mask
        requests = [
            GenerationRequest(f"llm-{next(self._requests)}", *fields)
            for fields in zip(encoded, samplings, masks, strict=True)
        ]
        answers = self._call(self._runner.run, requests)
        return [
            RequestOutput(
                prompt=text,
                prompt_token_ids=request.prompt_token_ids,
                mask=request.mask or default_mask,
                outputs=answer.outputs,
                prompt_logprobs=answer.prompt_logprobs,
                cached_tokens=answer.cached_tokens,
            )
            for text, request, answer in zip(texts, requests, answers, strict=True)
        ]

    def _call(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        if self._closed:
            raise EngineDeadError("this LLM is closed")
        return self._loop.run(function(*arguments))


def _as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """A list of prompts; a text or a list of token ids is a single one."""
    single = isinstance(prompts, (str, bytes, Mapping))  # the latter two are refused below
    listed: list[Any] = [prompts] if single else list(prompts)
    if listed and isinstance(listed[0], Integral):
        listed = [listed]
    for place, prompt in enumerate(listed, start=1):
        if not isinstance(prompt, str) and not _is_token_ids(prompt):
            raise InvalidRequestError(
                f"prompt {place} is {prompt!r:.60}, expected text or a list of token ids", "prompts"
            )
    return listed


def _is_token_ids(prompt: object) -> bool:
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        return False
    return all(isinstance(token, Integral) for token in prompt)


def _as_conversations(
    messages: Sequence[ChatMessage] | Sequence[Sequence[ChatMessage]],
) -> list[list[dict[str, Any]]]:
    """A list of conversations; a list of messages is a single one."""
    listed: list[Any] = list(messages)
    if listed and isinstance(listed[0], Mapping):
        listed = [listed]
    return [[_checked(message) for message in turns] for turns in listed]


def _checked(message: object) -> dict[str, Any]:
    if isinstance(message, Mapping):
        texts = [message.get(key) for key in ("role", "content")]
        if all(isinstance(text, str) for text in texts):
            return dict(message)
    raise InvalidRequestError(
        f"message {message!r:.60} is no dictionary with texts as its role and its content",
        "messages",
    )


def _for_each(value: T | Sequence[T], count: int, what: str, *types: type) -> list[T]:
    """`value` for every prompt: repeated if it is one value, itself if it is one for each."""
    if isinstance(value, types):
        return [value] * count  # type: ignore[list-item]
    values: list[Any] = list(value) if isinstance(value, Sequence) else [value]
    for item in values:
        if not isinstance(item, types):
            raise InvalidRequestError(f"{what} {item!r:.60} is of type {type(item).__name__}", what)
    if len(values) != count:
        raise InvalidRequestError(
            f"{count} prompts came with {len(values)} of {what}: give one, or one for each", what
        )
    return values
