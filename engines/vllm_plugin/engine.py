"""vLLM behind twofour's engine interface: `AsyncLLM` in this process, its workers in theirs."""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from engines.base import (
    Engine,
    EngineInfo,
    EngineStats,
    GenerationChunk,
    GenerationRequest,
    MaskInfo,
)
from engines.decoding.output_text import ChoiceText
from engines.decoding.request_checks import (
    check_request,
    scored,
    stop_token_ids,
    token_limit,
    without_work,
)
from engines.decoding.structured_output import ConstraintCompiler
from engines.directory.manifest import COMPLEMENT_FILE
from engines.directory.opening import open_directory
from engines.directory.progress import BuildProgress, silent
from engines.errors import (
    EngineDeadError,
    EngineOverloadedError,
    InvalidRequestError,
    MaskError,
)
from engines.text import TextCodec
from engines.typed_options import read_options
from engines.version import own_version
from engines.vllm_plugin.catalog import MaskCatalog
from engines.vllm_plugin.errors import as_engine_error
from engines.vllm_plugin.mask_turns import MaskGate
from engines.vllm_plugin.options import VllmOptions
from engines.vllm_plugin.version import check_version, vllm_version

_EXTENSION = "engines.vllm_plugin.worker.MaskWorker"
_SWITCH_TIMEOUT = 600.0


class VllmEngine(Engine):
    """See `engines.base.Engine`.

    vLLM runs one mask at a time: requests for another one wait until those running have ended
    (`engines.vllm_plugin.mask_turns`).

    Args:
        directory: what `twofour build --target vllm` wrote.
        progress: told how much has been read.
        options: see `VllmOptions`.

    Raises:
        VllmVersionError: vLLM is missing or of an untested version.
        EngineDirectoryError: the directory is malformed.
        ValueError: an option is unknown or out of range.
    """

    def __init__(
        self,
        directory: Path,
        *,
        progress: BuildProgress = silent,
        **options: Any,
    ) -> None:
        chosen = read_options(VllmOptions, options, "the vllm engine")
        self._version = vllm_version()
        check_version(self._version)
        self._manifest = open_directory(
            directory, "vllm", verify=chosen.verify, later=(COMPLEMENT_FILE,), progress=progress
        )
        self._codec = TextCodec(directory)
        self._catalog = MaskCatalog(directory, self._manifest)
        # Here, because vLLM takes seconds to import and the mistakes above should not.
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from engines.vllm_plugin.device import device_kernels
        from engines.vllm_plugin.stats import StatCounter

        self._counter = StatCounter()
        self._kernels = device_kernels(self._catalog.layout)
        arguments = {
            "model": str(directory),
            "worker_extension_cls": _EXTENSION,
            "enforce_eager": chosen.enforce_eager,
            "tensor_parallel_size": chosen.tensor_parallel_size,
            "max_model_len": chosen.max_model_len,
            "kv_cache_memory_bytes": chosen.kv_cache_bytes,
            "enable_prefix_caching": True,
            "disable_log_stats": True,  # vLLM's own loggers; ours is given below
            "seed": 0,
            **chosen.vllm_options,
        }
        self._llm: Any = AsyncLLM.from_engine_args(
            AsyncEngineArgs(**arguments), stat_loggers=[lambda config, index=0: self._counter]
        )
        config = self._llm.vllm_config
        self._context = int(config.model_config.max_model_len)
        self._vocab_size = int(config.model_config.get_vocab_size())
        self._kv_bytes = int(config.cache_config.kv_cache_memory_bytes or 0)
        self._tensor_parallel_size = chosen.tensor_parallel_size
        self._constraints = ConstraintCompiler(self._codec, self._vocab_size)
        self._gate = MaskGate(self._manifest.default_mask, self._switch)
        self._max_requests = chosen.max_requests
        self._tasks: dict[str, set[asyncio.Task[None]]] = {}
        self._masks_of: dict[str, str | None] = {}
        self._aborted: set[str] = set()
        self._closed = False

    @property
    def codec(self) -> TextCodec:
        return self._codec

    @property
    def constraints(self) -> ConstraintCompiler:
        return self._constraints

    def describe(self) -> EngineInfo:
        return EngineInfo(
            kind="vllm",
            model=self._manifest.model,
            base_digest=self._manifest.base_digest,
            context_length=self._context,
            vocab_size=self._vocab_size,
            masks=self._catalog.infos(Counter(self._masks_of.values()), self._gate.active),
            default_mask=self._manifest.default_mask,
            isa=self._kernels.isa,
            layout=self._kernels.layout if self._catalog.shapes else None,
            sparse_layers=len(self._catalog.shapes),
            eligible_layers=len(self._catalog.shapes),
            kernels={
                f"{n} x {k}": self._kernels.sparse for n, k in set(self._catalog.shapes.values())
            },
            weight_bytes=self._catalog.weight_bytes,
            values=self._manifest.quantisation.summary if self._manifest.quantisation else "bf16",
            version=f"vllm {self._version}",
            numerics=f"{own_version()}, vllm {self._version}, {self._kernels.isa},"
            f" {self._kernels.layout}, {self._tensor_parallel_size} workers a layer",
        )

    async def generate(self, request: GenerationRequest) -> AsyncIterator[GenerationChunk]:
        if self._closed or self._llm.errored:
            raise EngineDeadError("the engine is closed or vLLM has died; see its log")
        check_request(request, self._vocab_size, self._context)
        mask = self._catalog.resolve(request.mask)
        if answer := without_work(request):
            for whole in answer:
                yield whole
            return
        if len(self._tasks) >= self._max_requests:
            raise EngineOverloadedError(f"{self._max_requests} requests are in progress")
        if request.sampling.structured is not None:
            await asyncio.to_thread(self._constraints.compile, request.sampling.structured)
        key = request.request_id
        if key in self._tasks:
            raise InvalidRequestError(f"request id {key!r} is in use", param="request_id")
        queue: asyncio.Queue[GenerationChunk | BaseException] = asyncio.Queue()
        self._masks_of[key] = mask
        self._tasks[key] = set()
        try:
            async with self._gate.enter(mask):
                self._tasks[key] = {
                    asyncio.create_task(self._run_choice(request, mask, i, queue))
                    for i in range(request.sampling.n)
                }
                try:
                    left = request.sampling.n
                    while left:
                        chunk = await queue.get()
                        if isinstance(chunk, BaseException):
                            raise chunk
                        left -= chunk.finish_reason is not None
                        yield chunk
                finally:
                    for task in self._tasks[key]:
                        task.cancel()
                    # Their vLLM requests must be gone before another mask may become active.
                    await asyncio.gather(*self._tasks[key], return_exceptions=True)
        finally:
            del self._tasks[key], self._masks_of[key]
            self._aborted.discard(key)

    async def abort(self, request_id: str) -> None:
        if request_id not in self._tasks:
            return
        self._aborted.add(request_id)
        await self._llm.abort([f"{request_id}-{i}" for i in range(len(self._tasks[request_id]))])

    async def load_mask(self, name: str, path: Path) -> MaskInfo:
        await asyncio.to_thread(self._catalog.load, name, path)
        return self._mask_info(name)

    async def unload_mask(self, name: str) -> None:
        if name in self._masks_of.values():
            raise MaskError(f"{name!r} is in use; unload it when its requests have ended")
        self._catalog.unload(name)

    def stats(self) -> EngineStats:
        counter, waiting = self._counter, self._gate.waiting
        asked = Counter(mask for mask in self._masks_of.values() if mask is not None)
        queued = Counter({mask: n for mask, n in waiting.items() if mask is not None})
        age = time.monotonic() - counter.last_step if counter.running else 0.0
        return EngineStats(
            running=counter.running,
            waiting=counter.waiting + waiting.total(),
            kv_used_share=counter.kv_used_share,
            kv_total_bytes=self._kv_bytes * self._tensor_parallel_size,
            steps=counter.steps,
            prompt_tokens=counter.prompt_tokens,
            generation_tokens=counter.generation_tokens,
            cached_tokens=counter.cached_tokens,
            preemptions=counter.preemptions,
            mask_switches=self._gate.switches,
            running_masks=tuple(sorted(asked - queued)),
            waiting_masks=tuple(sorted(queued)),
            seconds_since_step=age,
        )

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for key in list(self._tasks):
            await self.abort(key)
        # vLLM cancels this task too, but only after the end of its core, which the task takes for
        # a crash and logs as one.
        if self._llm.output_handler is not None:
            self._llm.output_handler.cancel()
        await asyncio.to_thread(self._llm.shutdown)

    def _mask_info(self, name: str) -> MaskInfo:
        infos = self._catalog.infos(Counter(self._masks_of.values()), self._gate.active)
        return next(info for info in infos if info.name == name)

    async def _switch(self, name: str) -> None:
        """Make `name` the active mask; the gate has seen to it that nothing runs."""
        entry = self._catalog.entry(name)
        # "wait" also lets aborted requests leave the scheduler; their cache entries are salted.
        await self._llm.pause_generation(mode="wait", clear_cache=False)
        try:
            await self._llm.collective_rpc(
                "twofour_switch_mask",
                timeout=_SWITCH_TIMEOUT,
                args=(str(entry.file.absolute()), entry.digest, self._catalog.identity),
            )
        finally:
            await self._llm.resume_generation()

    async def _run_choice(
        self,
        request: GenerationRequest,
        mask: str | None,
        index: int,
        queue: asyncio.Queue[GenerationChunk | BaseException],
    ) -> None:
        try:
            if request.sampling.scores_only:
                queue.put_nowait(await self._score(request, mask, index))
                return
            async for chunk in self._stream(request, mask, index):
                queue.put_nowait(chunk)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            queue.put_nowait(as_engine_error(error))

    async def _score(
        self, request: GenerationRequest, mask: str | None, index: int
    ) -> GenerationChunk:
        from vllm import TokensPrompt

        from engines.vllm_plugin import convert

        *known, last = request.prompt_token_ids
        alternatives = request.sampling.prompt_logprobs or 0
        salt = convert.cache_salt(self._catalog.digest(mask), request.cache_salt)
        async for output in self._llm.generate(
            TokensPrompt(prompt_token_ids=known, cache_salt=salt),
            convert.scoring_params(last, alternatives),
            f"{request.request_id}-{index}",
        ):
            (choice,) = output.outputs
            if choice.token_ids:
                rows = convert.prompt_token_logprobs(output.prompt_logprobs, known, alternatives)
                end = convert.token_logprobs(choice.logprobs[0], last, alternatives)
                return scored(index, (*rows, end))
        return GenerationChunk(index, "", (), finish_reason="abort")

    async def _stream(
        self, request: GenerationRequest, mask: str | None, index: int
    ) -> AsyncIterator[GenerationChunk]:
        from vllm import TokensPrompt

        from engines.vllm_plugin import convert

        params = request.sampling.for_choice(index)
        prompt = request.prompt_token_ids
        eos = self._codec.eos_token_ids
        limit = token_limit(request, self._context)
        text = ChoiceText(self._codec.stream_of(params, prompt), params, eos, limit)
        salt = convert.cache_salt(self._catalog.digest(mask), request.cache_salt)
        outputs = self._llm.generate(
            TokensPrompt(prompt_token_ids=list(prompt), cache_salt=salt),
            convert.sampling_params(params, limit, stop_token_ids(request, eos)),
            f"{request.request_id}-{index}",
        )
        first = True
        async for output in outputs:
            prompt_logprobs = None
            if first and params.prompt_logprobs is not None and output.prompt_logprobs:
                prompt_logprobs = convert.prompt_token_logprobs(
                    output.prompt_logprobs, prompt, params.prompt_logprobs
                )
            (choice,) = output.outputs
            chunk = functools.partial(
                GenerationChunk,
                index=index,
                prompt_logprobs=prompt_logprobs,
                cached_tokens=(output.num_cached_tokens or 0) if first else 0,
            )
            first = False
            pieces, tokens, logprobs = [], [], []
            for place, token in enumerate(choice.token_ids):
                piece = text.push(token)
                pieces.append(piece.text)
                tokens.append(token)
                if params.logprobs is not None:
                    logprobs.append(
                        convert.token_logprobs(choice.logprobs[place], token, params.logprobs)
                    )
                if piece.finish_reason is not None:
                    break
            else:
                piece = None
            reason = None if piece is None else piece.finish_reason
            if reason is None and choice.finish_reason is not None:
                # vLLM ended it and the text did not: an abort, or a finished structured output.
                pieces.append(text.flush())
                reason = "stop" if choice.finish_reason == "stop" else "abort"
            yield chunk(
                text="".join(pieces),
                token_ids=tuple(tokens),
                logprobs=tuple(logprobs) if params.logprobs is not None else None,
                finish_reason=reason,
                stop_reason=None if piece is None else piece.stop_reason,
            )
            if reason is not None:
                # Closing the stream aborts what vLLM would still generate after a stop string.
                await outputs.aclose()
                return
