"""A deterministic engine without a model: every path of the server can be walked with it.

The text of the prompt decides what happens: `FAIL` ends with an error after three tokens, `INVALID`
with one that is the request's fault, `CRASH` raises, `LOST` finds no file of its mask, `HANG` never
answers, `SLOW` takes its time, `REFUSE`, `OVERLOAD`, `NO ROOM` and `DEAD` raise the engine's own
errors. `SAY text YAS` answers with the last such text, whatever the constraint, and `OBEY` with a
short text that the constraint allows. All others are continued with letters that depend on the
prompt, the mask, the seed and the choice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from engines.base import (
    Engine,
    EngineInfo,
    EngineStats,
    GenerationChunk,
    GenerationRequest,
    MaskInfo,
    TokenLogprobs,
)
from engines.decoding.output_text import ChoiceText
from engines.decoding.request_checks import scored, without_work
from engines.decoding.structured_output import ConstraintCompiler
from engines.errors import (
    EngineDeadError,
    EngineOverloadedError,
    InvalidRequestError,
    MaskError,
    MaskMemoryError,
    UnknownMaskError,
)
from engines.sampling import StructuredOutput
from engines.text import TextCodec

CONTEXT = 256
LETTERS = "abcdefghijklmnopqrstuvwxyz "
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and loop.first %}"
    "{{ raise_exception('the conversation must not begin with the assistant') }}{% endif %}"
    "<|{{ m['role'] }}{% if m['name'] is defined %}:{{ m['name'] }}{% endif %}|>"
    "{{ m['content'] }}\n{% endfor %}<|assistant|>"
)


def write_tokenizer(directory: Path, template: str, special_tokens: Sequence[str]) -> Path:
    """A byte-level tokenizer, one token per byte, with a chat template."""
    directory.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|end|>": 0, **{char: index for index, char in enumerate(alphabet, start=1)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>", *special_tokens])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"eos_token": "<|end|>", "chat_template": template}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class FakeEngine(Engine):
    """See the module's text.

    Args:
        directory: where to write the tokenizer.
        step_seconds: pause before each token.
        template: chat template.
        special_tokens: further ones of the tokenizer.
        context: tokens that it holds.
        dense_bytes: of a dense model beside the masks, if there is one.
        mask_budget: that it says it has.
    """

    def __init__(
        self,
        directory: Path,
        step_seconds: float = 0.0,
        template: str = CHAT_TEMPLATE,
        special_tokens: Sequence[str] = (),
        context: int = CONTEXT,
        dense_bytes: int | None = None,
        mask_budget: int | None = None,
    ) -> None:
        self._mask_budget = mask_budget
        self._dense_bytes = dense_bytes
        self._context = context
        self._codec = TextCodec(write_tokenizer(directory, template, special_tokens))
        self._constraints = ConstraintCompiler(self._codec, self._codec.vocab_size)
        self.step_seconds = step_seconds
        self.masks = {name: self._mask(name) for name in ("general", "french")}
        self.requests: list[GenerationRequest] = []
        self.running: dict[str, str] = {}
        self.steps = self.prompt_tokens = self.generation_tokens = 0
        self.stalled_for = 0.0
        self.dead = False
        self.closed = False

    @property
    def codec(self) -> TextCodec:
        return self._codec

    @property
    def constraints(self) -> ConstraintCompiler:
        return self._constraints

    def describe(self) -> EngineInfo:
        return EngineInfo(
            kind="fake",
            model="tiny",
            base_digest=digest_of("tiny"),
            context_length=self._context,
            vocab_size=self._codec.vocab_size,
            masks=tuple(self.masks.values()),
            default_mask="general",
            isa="none",
            layout="fake-1",
            sparse_layers=3,
            eligible_layers=4,
            kernels={"64 x 64": "fake"},
            weight_bytes=123,
            version="1",
            numerics="fake",
            dense_bytes=self._dense_bytes,
            mask_budget=self._mask_budget,
        )

    async def generate(self, request: GenerationRequest) -> AsyncIterator[GenerationChunk]:
        text = self._codec.decode(request.prompt_token_ids, skip_special_tokens=False)
        self._refuse(request, text)
        self.requests.append(request)
        mask = request.mask or "general"
        for chunk in self._scores(request):
            yield chunk
        if request.sampling.scores_only:
            return
        self.running[request.request_id] = mask
        self.prompt_tokens += len(request.prompt_token_ids)
        try:
            while "HANG" in text:
                await asyncio.sleep(0.01)
            written = self._written(request, text)
            if written is not None:
                for chunk in self._dictated(request, written):
                    await asyncio.sleep(self.step_seconds)
                    yield chunk
                return
            async for chunk in self._tokens(request, mask, text):
                yield chunk
        finally:
            del self.running[request.request_id]

    def _scores(self, request: GenerationRequest) -> list[GenerationChunk]:
        """The whole answer to a request that only scores its prompt."""
        sampling = request.sampling
        if not sampling.scores_only or sampling.prompt_logprobs is None:
            return without_work(request)
        rows = [self._logprobs(t, sampling.prompt_logprobs) for t in request.prompt_token_ids[1:]]
        return [scored(index, (None, *rows)) for index in range(sampling.n)]

    def _written(self, request: GenerationRequest, text: str) -> list[int] | None:
        """The tokens of an answer that the prompt dictates."""
        if "OBEY" in text and request.sampling.structured is not None:
            return self._obedient(request.sampling.structured)
        said = re.findall(r"SAY (.*?) YAS", text, re.DOTALL)
        return self._codec.encode(said[-1]) if said else None

    def _obedient(self, spec: StructuredOutput) -> list[int]:
        """One of the shortest texts of a constraint: what ends things is taken first."""
        constraint = self._constraints.compile(spec)
        written: list[int] = []
        special = list(range(257, self._codec.vocab_size))
        preferred = [*special, 0, *self._codec.encode('"}])1ntabcdefghijklmnopqrsuvwxyz')]
        while not constraint.finished and len(written) < self._context:
            allowed = constraint.allowed(self._codec.vocab_size)
            token = next((t for t in preferred if allowed[t]), int(allowed.argmax()))
            if token == 0:
                break
            constraint.push(token)
            written.append(token)
        return written

    def _dictated(self, request: GenerationRequest, token_ids: list[int]) -> list[GenerationChunk]:
        sampling = request.sampling
        room = sampling.max_tokens or self._context - len(request.prompt_token_ids)
        chunks = []
        for index in range(sampling.n):
            stream = self._codec.stream_of(sampling, request.prompt_token_ids)
            choice = ChoiceText(stream, sampling, (), room)
            for position, token in enumerate(token_ids[:room], 1):
                delta = choice.push(token, constraint_finished=position == len(token_ids))
                logprobs = None
                if sampling.logprobs is not None:
                    logprobs = (self._logprobs(token, sampling.logprobs),)
                rows = sampling.prompt_logprobs if position == 1 else None
                scored_prompt = None if rows is None else self._prompt_rows(request, rows)
                self.generation_tokens += 1
                chunks.append(
                    GenerationChunk(
                        index,
                        delta.text,
                        (token,),
                        logprobs,
                        scored_prompt,
                        finish_reason=delta.finish_reason,
                        stop_reason=delta.stop_reason,
                    )
                )
                if delta.finish_reason is not None:
                    break
        return chunks

    async def _tokens(
        self, request: GenerationRequest, mask: str, text: str
    ) -> AsyncIterator[GenerationChunk]:
        fail, slow = "FAIL" in text, "SLOW" in text
        sampling = request.sampling
        room = self._context - len(request.prompt_token_ids)
        length = min(sampling.max_tokens or room, room)
        done: set[int] = set()
        written = [""] * sampling.n
        for position in range(length):
            await asyncio.sleep(0.02 if slow else self.step_seconds)
            self.steps += 1
            if "INVALID" in text and position == 3:
                yield GenerationChunk(
                    0, "", (), finish_reason="error", error="it cannot go on", invalid=True
                )
                return
            if fail and position == 3:
                yield GenerationChunk(0, "", (), finish_reason="error", error="secret 0xdeadbeef")
                return
            for index in range(sampling.n):
                if index in done:
                    continue
                chunk = self._chunk(request, mask, index, position)
                written[index] += chunk.text
                stop = next((s for s in sampling.stop if s in written[index]), None)
                if stop is not None:
                    chunk = replace(chunk, text="", finish_reason="stop", stop_reason=stop)
                elif position == length - 1:
                    chunk = replace(chunk, finish_reason="length")
                if chunk.finish_reason:
                    done.add(index)
                self.generation_tokens += 1
                yield chunk

    def _chunk(
        self, request: GenerationRequest, mask: str, index: int, position: int
    ) -> GenerationChunk:
        key = f"{request.prompt_token_ids} {mask} {request.sampling.seed} {index} {position}"
        letter = LETTERS[hashlib.sha256(key.encode()).digest()[0] % len(LETTERS)]
        token_id = self._codec.encode(letter)[0]
        sampling = request.sampling
        logprobs = prompt_logprobs = None
        if sampling.logprobs is not None:
            logprobs = (self._logprobs(token_id, sampling.logprobs),)
        if sampling.prompt_logprobs is not None and position == 0:
            prompt_logprobs = self._prompt_rows(request, sampling.prompt_logprobs)
        cached = 2 if position == 0 and len(request.prompt_token_ids) > 2 else 0
        return GenerationChunk(
            index, letter, (token_id,), logprobs, prompt_logprobs, cached_tokens=cached
        )

    def _prompt_rows(
        self, request: GenerationRequest, top: int
    ) -> tuple[TokenLogprobs | None, ...]:
        return (None, *(self._logprobs(t, top) for t in request.prompt_token_ids[1:]))

    def _logprobs(self, token_id: int, top: int) -> TokenLogprobs:
        best = tuple((token_id + k, -0.5 - k) for k in range(top))
        return TokenLogprobs(token_id, -0.5, 1, best)

    def _refuse(self, request: GenerationRequest, text: str) -> None:
        if self.dead or "DEAD" in text:
            raise EngineDeadError("stopped")
        if "REFUSE" in text:
            raise InvalidRequestError("the schema is not supported", param="response_format")
        if "NO ROOM" in text:
            raise MaskMemoryError("the memory for masks is taken")
        if "OVERLOAD" in text:
            raise EngineOverloadedError("full")
        if "LOST" in text:
            raise MaskError("no such file: /secret/french.safetensors")
        if "CRASH" in text:
            raise RuntimeError("secret 0xdeadbeef")
        dense = request.mask == "dense" and self._dense_bytes is not None
        if request.mask is not None and request.mask not in self.masks and not dense:
            raise UnknownMaskError(f"no mask {request.mask}")

    async def abort(self, request_id: str) -> None:
        self.running.pop(request_id, None)

    async def load_mask(self, name: str, path: Path) -> MaskInfo:
        if path.read_text() != "mask":
            raise MaskError(f"{path} is not a mask file; look at the others in {path.parent}")
        self.masks[name] = self._mask(name)
        return self.masks[name]

    async def unload_mask(self, name: str) -> None:
        if name == "general":
            raise MaskError("general is the default mask")
        del self.masks[name]

    def stats(self) -> EngineStats:
        if self.dead:
            raise EngineDeadError("stopped")
        return EngineStats(
            running=len(self.running),
            steps=self.steps,
            prompt_tokens=self.prompt_tokens,
            generation_tokens=self.generation_tokens,
            running_masks=tuple(sorted(set(self.running.values()))),
            seconds_since_step=self.stalled_for,
        )

    async def close(self) -> None:
        self.closed = True

    def _mask(self, name: str) -> MaskInfo:
        storage = "base" if name == "general" else "patch"
        return MaskInfo(name, digest_of(name), f"{name} text", storage, resident_bytes=7)
