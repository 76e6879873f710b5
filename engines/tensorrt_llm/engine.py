"""The engine class over TensorRT-LLM engines, one of them per mask.

Another mask is another engine: requests with different masks never share a batch, and masks beyond
the memory budget are loaded when they are asked for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
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
from engines.decoding.request_checks import check_request, token_limit, without_work
from engines.directory.progress import BuildProgress, silent
from engines.errors import (
    EngineDeadError,
    EngineDirectoryError,
    EngineOverloadedError,
    InvalidRequestError,
    MaskError,
)
from engines.mask_rules import check_load, check_requested, check_unload, read_fitting
from engines.tensorrt_llm import llm_api
from engines.tensorrt_llm.choice import run_choice
from engines.tensorrt_llm.engine_files import EngineFiles
from engines.tensorrt_llm.options import TensorRtLlmOptions
from engines.tensorrt_llm.pool import EnginePool
from engines.tensorrt_llm.record import (
    BASE,
    SCRIPT_FILE,
    EngineRecord,
    describe_engine,
    open_record,
)
from engines.text import TextCodec
from engines.typed_options import read_options


class TensorRtLlmEngine(Engine):
    """See `engines.base.Engine`.

    Args:
        directory: a directory that `twofour build --target tensorrt-llm` finished.
        progress: told how much has been read.
        options: see `TensorRtLlmOptions`.

    Raises:
        EngineDirectoryError: the directory is malformed, its engines are not built yet, or the
            default engine does not fit the memory.
        ToolsMissingError: TensorRT-LLM is absent or of another version.
        ValueError: an option is unknown or out of range.
    """

    def __init__(
        self,
        directory: Path,
        *,
        progress: BuildProgress = silent,
        **options: Any,
    ) -> None:
        chosen = read_options(TensorRtLlmOptions, options, "the tensorrt-llm engine")
        self._directory = directory
        self._manifest, self._record = open_record(
            directory, verify=chosen.verify, progress=progress
        )
        self._default = self._manifest.default_mask or BASE
        self._kv_bytes = int(chosen.kv_gib * 2**30)
        kv_tokens = self._kv_bytes // self._record.kv_bytes_per_token
        if kv_tokens < self._record.max_seq_len:
            raise EngineDirectoryError(
                f"kv_gib {chosen.kv_gib} holds {kv_tokens} tokens, less than one sequence of"
                f" {self._record.max_seq_len}"
            )
        self._options = llm_api.EngineOptions(kv_tokens, self._record.prompt_logprobs)
        self._served = {name for name, engine in self._record.engines.items() if engine.built}
        self._files = EngineFiles(
            directory, self._manifest, self._record, self._served, chosen.verify
        )
        if self._default not in self._served:
            raise EngineDirectoryError(
                f"{directory} holds checkpoints but no engine yet: run {directory / SCRIPT_FILE}"
                " where TensorRT-LLM and a GPU are"
            )
        self._version = llm_api.require_version()
        self._codec = TextCodec(directory)
        memory = chosen.memory_gib
        budget = None if memory is None else int(memory * 2**30)
        sizes = {name: self._size(self._record.engines[name]) for name in self._served}
        self._pool = EnginePool(self._load, sizes, budget)
        self._pool.preload(self._default)
        self._max_requests = chosen.max_requests
        self._results: dict[str, list[llm_api.GenerationResult]] = {}
        self._aborted: set[str] = set()
        self._stats = EngineStats()
        self._last_step = time.monotonic()
        self._closed = False

    @property
    def codec(self) -> TextCodec:
        return self._codec

    @property
    def constraints(self) -> None:
        return None

    def describe(self) -> EngineInfo:
        default = self._record.engines[self._default]
        engines = {name: self._record.engines[name] for name in sorted(self._served)}
        return EngineInfo(
            kind="tensorrt_llm",
            model=self._manifest.model,
            base_digest=self._manifest.base_digest,
            context_length=self._record.max_seq_len,
            vocab_size=self._record.vocab_size,
            masks=tuple(
                self._mask_info(mask.name)
                for mask in self._manifest.masks
                if mask.name in self._served
            ),
            default_mask=self._manifest.default_mask,
            isa=self._record.gpus[0] if self._record.gpus else "cuda",
            layout=None,
            sparse_layers=default.chosen or 0,
            eligible_layers=default.eligible or 0,
            kernels={
                name: f"TensorRT: {describe_engine(engine, self._record)}"
                for name, engine in engines.items()
            },
            weight_bytes=sum(self._record.engines[n].bytes for n in self._pool.resident),
            version=f"TensorRT-LLM {self._version}",
            numerics=f"TensorRT-LLM {self._version}, {', '.join(self._record.gpus)}",
        )

    async def generate(self, request: GenerationRequest) -> AsyncIterator[GenerationChunk]:
        name = self._check(request)
        if answer := without_work(request):
            for chunk in answer:
                yield chunk
            return
        chunks: asyncio.Queue[GenerationChunk] = asyncio.Queue()
        key = request.request_id
        results: list[llm_api.GenerationResult] = []
        self._results[key] = results
        tasks: list[asyncio.Task[None]] = []
        try:
            llm = await self._pool.acquire(name)
            try:
                self._submit(request, llm, results)
                tasks += [
                    asyncio.create_task(self._pump(choice, chunks))
                    for choice in self._choices(request, results)
                ]
                remaining = len(tasks)
                while remaining:
                    chunk = await chunks.get()
                    remaining -= chunk.finish_reason is not None
                    yield chunk
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                for result in results:
                    result.abort()
                await self._pool.release(name)
        finally:
            del self._results[key]
            self._aborted.discard(key)

    async def abort(self, request_id: str) -> None:
        if request_id not in self._results:
            return
        self._aborted.add(request_id)
        for result in self._results[request_id]:
            result.abort()

    async def load_mask(self, name: str, path: Path) -> MaskInfo:
        check_load(name, self._served, self._manifest.default_mask, self._manifest.sealed)
        # Whether it fits the other masks was checked when its engine was built.
        digest = self._manifest.base_digest
        mask = await asyncio.to_thread(read_fitting, name, path, "tensorrt-llm", digest, None)
        # Read again: the directory may have been extended since it was opened.
        again = await asyncio.to_thread(self._files.read_again, self._served)
        self._manifest, self._record = again
        known = {m.name: m.digest for m in self._manifest.masks}
        engine = self._record.engines.get(name)
        if engine is None or not engine.built or known.get(name) != mask.digest:
            raise MaskError(
                f"there is no engine for mask {name!r} ({mask.digest[:12]}...): TensorRT builds"
                f" masks into engines. Run `python -m engines.tensorrt_llm.build --extend"
                f" {self._directory} --model MODEL --mask {name}={path}` and load it again"
            )
        self._files.add(name)
        self._pool.add(name, self._size(engine))
        self._served.add(name)
        return self._mask_info(name)

    async def unload_mask(self, name: str) -> None:
        check_unload(name, self._mask_names(), self._default)
        self._served.discard(name)
        await self._pool.retire(name)

    def stats(self) -> EngineStats:
        users = {name: self._pool.users(name) for name in self._pool.resident}
        running = sum(users.values())
        return replace(
            self._stats,
            running=running,
            waiting=len(self._pool.waiting),
            kv_total_bytes=self._kv_bytes * len(users),
            mask_switches=self._pool.loads - 1,
            running_masks=tuple(name for name, count in users.items() if count and name != BASE),
            waiting_masks=tuple(sorted(set(self._pool.waiting) - {BASE})),
            seconds_since_step=time.monotonic() - self._last_step if running else 0.0,
        )

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for key in list(self._results):
            await self.abort(key)
        await self._pool.close()

    def _mask_names(self) -> set[str]:
        # A dense directory has one engine, which no request can name as a mask.
        return set() if self._manifest.default_mask is None else self._served

    def _check(self, request: GenerationRequest) -> str:
        """The engine that `request` runs on."""
        if self._closed:
            raise EngineDeadError("the engine is closed")
        check_request(request, self._record.vocab_size, self._record.max_seq_len)
        name = self._default if request.mask is None else request.mask
        if request.mask is not None:
            check_requested(request.mask, self._mask_names())
        if request.sampling.prompt_logprobs is not None and not self._record.prompt_logprobs:
            raise InvalidRequestError(
                "this engine was built without log-probs of prompts; build it with the setting"
                " prompt_logprobs",
                param="prompt_logprobs",
            )
        if len(self._results) >= self._max_requests:
            raise EngineOverloadedError(f"{self._max_requests} requests are in progress")
        return name

    def _submit(
        self, request: GenerationRequest, llm: llm_api.Llm, results: list[llm_api.GenerationResult]
    ) -> None:
        limit = token_limit(request, self._record.max_seq_len)
        prompt, salt = request.prompt_token_ids, request.cache_salt
        if request.sampling.scores_only:
            # TensorRT-LLM always generates: a prompt without its last token leaves room for that,
            # and the logits that predict the last token are those of the one before.
            prompt, limit = prompt[:-1], 1
        for index in range(request.sampling.n):
            params = request.sampling.for_choice(index)
            arguments = llm_api.sampling_arguments(params, self._codec.eos_token_ids, limit)
            try:
                result = llm_api.start(
                    llm, prompt, params, arguments, self._record.vocab_size, salt
                )
            except RuntimeError as error:
                raise EngineDeadError(f"TensorRT-LLM takes no requests: {error}") from error
            results.append(result)
        self._last_step = time.monotonic()
        self._count(prompt_tokens=len(prompt))

    def _choices(
        self, request: GenerationRequest, results: list[llm_api.GenerationResult]
    ) -> Iterator[AsyncIterator[GenerationChunk]]:
        for index, result in enumerate(results):
            yield run_choice(
                index,
                result,
                request.prompt_token_ids,
                request.sampling.for_choice(index),
                self._codec,
                token_limit(request, self._record.max_seq_len),
                aborted=partial(self._is_aborted, request.request_id),
            )

    async def _pump(
        self, source: AsyncIterator[GenerationChunk], chunks: asyncio.Queue[GenerationChunk]
    ) -> None:
        async for chunk in source:
            self._last_step = time.monotonic()
            self._count(steps=1, generation_tokens=len(chunk.token_ids))
            chunks.put_nowait(chunk)

    def _is_aborted(self, request_id: str) -> bool:
        return self._closed or request_id in self._aborted

    def _count(self, **more: int) -> None:
        grown: dict[str, Any] = {
            name: getattr(self._stats, name) + amount for name, amount in more.items()
        }
        self._stats = replace(self._stats, **grown)

    def _load(self, name: str) -> llm_api.Llm:
        self._files.confirm(name)
        folder = self._directory / self._record.engines[name].directory
        return llm_api.open_llm(folder, self._options)

    def _size(self, engine: EngineRecord) -> int:
        return engine.bytes + self._kv_bytes

    def _mask_info(self, name: str) -> MaskInfo:
        mask = self._manifest.mask(name)
        resident = name in self._pool.resident
        return MaskInfo(
            name=name,
            digest=mask.digest,
            domain=mask.domain,
            storage="base" if name == self._default else "copy",
            changed_share=mask.changed_share,
            resident_bytes=self._record.engines[name].bytes if resident else 0,
            pinned=self._pool.users(name),
        )
