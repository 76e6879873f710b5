"""The one interface that every engine implements and the server is written against."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from engines.sampling import SamplingParams, StructuredOutput
from engines.text import TextCodec

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to continue.

    Attributes:
        request_id: unique among the running requests of this engine.
        prompt_token_ids: at least one token id.
        sampling: how to sample, and how many choices (`sampling.n`).
        mask: name of a loaded mask; None is the engine's default mask; `dense` is the model without
            one, where the engine has it beside masks.
        cache_salt: requests share prefix-cache entries only with requests of the same salt.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    mask: str | None = None
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position.

    Attributes:
        token_id: the token at this position.
        logprob: its log-probability (natural logarithm) under the model's distribution.
        rank: its rank among all tokens, 1 being the likeliest.
        top: the likeliest (token id, log-probability), best first; as many as were asked for.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationChunk:
    """What one engine step adds to one choice of a request.

    Attributes:
        index: which of the request's `n` choices.
        text: new text; empty while a character is incomplete or a stop string may be coming.
        token_ids: new token ids, in order.
        logprobs: one per new token when the request asked for log-probs, else None.
        prompt_logprobs: on the first chunk when asked for; the first position has none.
        finish_reason: set on the choice's last chunk.
        stop_reason: the stop string or token id that ended the choice, if one did.
        cached_tokens: prompt tokens taken from the prefix cache; on the first chunk.
        error: what went wrong, when `finish_reason` is `error`.
        invalid: whether the request itself is at fault (its constraint grew too heavy).
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    cached_tokens: int = 0
    error: str | None = None
    invalid: bool = False


@dataclass(frozen=True, slots=True)
class MaskInfo:
    """A mask that an engine has loaded.

    Attributes:
        name: what a request calls it.
        digest: the mask digest (hexadecimal SHA-256).
        domain: the domain it was made for, as its file says.
        storage: `base` (its weights are the engine's own), `patch` (kept as a difference to
            the base mask) or `copy` (a full set of packed weights).
        changed_share: share of groups that differ from the base mask, 0 to 1.
        resident_bytes: memory that this mask alone occupies.
        pinned: running sequences that use it.
        resident: whether it is in memory; if not, the next request for it waits until it is.
        reason: why it is stored so, for people; empty where there is no choice.
        numerics: what in the way of storage changes last bits of its answers; empty for nothing.
    """

    name: str
    digest: str
    domain: str
    storage: Literal["base", "patch", "copy"]
    changed_share: float = 0.0
    resident_bytes: int = 0
    pinned: int = 0
    resident: bool = True
    reason: str = ""
    numerics: str = ""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is; fixed while it runs, except for `masks`.

    Attributes:
        kind: `cpu`, `vllm`, `tensorrt_llm` or `reference`.
        model: the base model's name, as requests give it.
        base_digest: digest of the base model's tensors.
        context_length: most tokens (prompt and generated) of one sequence.
        vocab_size: token ids are below this.
        masks: the loaded masks; empty when the engine runs the dense model.
        default_mask: what a request that names no mask gets; None is the dense model.
        isa: instruction set of the kernels (`avx512_bf16`, ...), or the device's name.
        layout: id and version of the sparse layout, None when no layer is sparse.
        mask_budget: bytes that masks beside the base may take; None for no limit.
        dense_bytes: memory of the dense model beside the masks; None where there is none.
        values: type of the weights' values, and how they were made where that is a choice.
        sparse_layers: eligible linear layers that run a sparse kernel.
        eligible_layers: linear layers that the mask lists.
        kernels: layer shape (`n x k`; a mask's name where an engine is built per mask) -> the
            kernel that serves it, and why where it is dense.
        weight_bytes: bytes of all resident weights.
        version: version of the engine or of the library behind it.
        numerics: everything, beside the weights and `MaskInfo.numerics`, that changes last bits of
            answers: kernels, their versions, the number of threads where it matters.
    """

    kind: str
    model: str
    base_digest: str
    context_length: int
    vocab_size: int
    masks: tuple[MaskInfo, ...]
    default_mask: str | None
    isa: str
    layout: str | None
    sparse_layers: int
    eligible_layers: int
    kernels: dict[str, str]
    weight_bytes: int
    version: str
    numerics: str
    values: str = "bf16"
    dense_bytes: int | None = None
    mask_budget: int | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of an engine's load; counters only grow.

    `seconds_since_step` is how long ago the engine loop last turned over while it had work (0
    when it is idle): the server's watchdog reads it.
    """

    running: int = 0
    waiting: int = 0
    kv_used_share: float = 0.0
    kv_total_bytes: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    mask_switches: int = 0
    mask_evictions: int = 0
    mask_restores: int = 0
    running_masks: tuple[str, ...] = ()
    waiting_masks: tuple[str, ...] = ()
    seconds_since_step: float = 0.0


class StructuredOutputCompiler(Protocol):
    """Compiles structured output, as `engines.decoding.structured_output` does."""

    def compile(self, spec: StructuredOutput) -> object:
        """Compile a constraint; may take a second.

        Raises:
            InvalidRequestError: it is malformed, or beyond the limits.
        """


class Engine(ABC):
    """Generates text with one base model under any of its loaded masks.

    All methods are called from one asyncio event loop; the work happens elsewhere (a thread, a
    process, a device), so none of them blocks the loop for long.
    """

    @property
    @abstractmethod
    def codec(self) -> TextCodec:
        """Tokenizer and chat template of the base model."""

    @property
    @abstractmethod
    def constraints(self) -> StructuredOutputCompiler | None:
        """Compiler of structured output, to check one before it is asked for; None without any."""

    @abstractmethod
    def describe(self) -> EngineInfo:
        """What this engine is and which masks it has loaded."""

    @abstractmethod
    def generate(self, request: GenerationRequest) -> AsyncIterator[GenerationChunk]:
        """Stream the chunks of all choices of `request`, interleaved.

        A choice that only scores its prompt (`sampling.scores_only`) gives one chunk, without
        tokens and with reason `length`.

        Closing the iterator aborts the request and frees what it holds within one step.

        Raises:
            InvalidRequestError: before the first chunk; the request can never run.
            EngineOverloadedError: before the first chunk; the waiting queue is full.
            EngineDeadError: the engine no longer steps.
        """

    @abstractmethod
    async def abort(self, request_id: str) -> None:
        """End a request; its choices finish with reason `abort`. Unknown ids are ignored."""

    @abstractmethod
    async def load_mask(self, name: str, path: Path) -> MaskInfo:
        """Load a mask file under `name`.

        Raises:
            MaskError: the name is taken, the file is malformed or belongs to another base model,
                or the engine directory is sealed.
        """

    @abstractmethod
    async def unload_mask(self, name: str) -> None:
        """Forget a mask. Running sequences that pinned it finish with it.

        Raises:
            UnknownMaskError: no such mask.
            MaskError: it is the default mask.
        """

    @abstractmethod
    def stats(self) -> EngineStats:
        """A snapshot of counters and gauges; cheap, callable at any time."""

    @abstractmethod
    async def close(self) -> None:
        """Abort what runs and free everything. Safe to call twice."""
