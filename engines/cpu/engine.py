"""The CPU engine: engine directory in, token streams out."""

from __future__ import annotations

import asyncio
import itertools
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
from engines.cpu.describe import kernels_of
from engines.cpu.kv_pages import PagePool, prefix_root
from engines.cpu.loop import EngineLoop
from engines.cpu.mask_store import MaskStore
from engines.cpu.masks import LoadedMask, Variant
from engines.cpu.model import CpuModel
from engines.cpu.opening import open_cpu_directory
from engines.cpu.options import PROMPT_ROWS, CpuOptions, limits_of
from engines.cpu.runner import Runner
from engines.cpu.scheduler import Scheduler, SchedulerLimits
from engines.cpu.sequence import Sequence
from engines.cpu.value_form import forms_of
from engines.cpu.waiting import WaitingCounter
from engines.decoding.output_text import ChoiceText
from engines.decoding.request_checks import check_request, stop_token_ids, token_limit, without_work
from engines.decoding.sampler import SequenceSampler
from engines.decoding.structured_output import ConstraintCompiler
from engines.directory.progress import BuildProgress, silent
from engines.errors import (
    EngineDeadError,
    as_engine_directory_error,
)
from engines.mask_rules import DENSE
from engines.native.layout import VERSION
from engines.text import TextCodec
from engines.typed_options import read_options
from engines.version import own_version


class CpuEngine(Engine):
    """See `engines.base.Engine`.

    Args:
        directory: an engine directory of target `cpu`.
        progress: told how much has been read.
        options: see `CpuOptions`.

    Raises:
        EngineDirectoryError: the directory is malformed or damaged, or its key-value cache too
            small.
        ValueError: an option is unknown or out of range.
    """

    def __init__(
        self,
        directory: Path,
        *,
        progress: BuildProgress = silent,
        **options: Any,
    ) -> None:
        self._options = read_options(CpuOptions, options, "the cpu engine")
        opened = open_cpu_directory(
            directory,
            verify=self._options.verify,
            map_weights=self._options.map_weights,
            progress=progress,
        )
        self._manifest, config = opened.manifest, opened.config
        self._codec = TextCodec(directory)
        self._config = config
        with as_engine_directory_error(directory):
            limits = limits_of(config, self._options)
            forms = forms_of(self._manifest.quantisation)
            self._model = CpuModel(opened.weights, config, limits, forms, isa=self._options.isa)
        self._context = limits.context
        self._masks = MaskStore(
            directory, self._manifest, self._model, self._options, opened.complement, opened.dense
        )
        self._pool = PagePool(limits.pages)
        self._waiters = WaitingCounter(self._options.max_waiting)
        self._scheduler = Scheduler(
            self._pool,
            SchedulerLimits(
                sequences=self._options.max_sequences,
                step_tokens=self._options.step_tokens,
                mixed_prefill_tokens=self._options.mixed_prefill_tokens,
                prompt_rows=PROMPT_ROWS,
            ),
            self._waiters,
            prefix_cache=self._options.prefix_cache,
        )
        self._constraints = ConstraintCompiler(self._codec, config.vocab)
        self._runner = Runner(self._model, self._scheduler)
        self._arrivals = itertools.count()
        self._live: dict[Sequence, None] = {}
        self._closed = False
        self._death: BaseException | None = None
        self._loop = EngineLoop(self._scheduler, self._runner, self._ended, self._died)

    @property
    def codec(self) -> TextCodec:
        return self._codec

    @property
    def constraints(self) -> ConstraintCompiler:
        return self._constraints

    def describe(self) -> EngineInfo:
        layout, quantisation = self._manifest.layout, self._manifest.quantisation
        made = "" if quantisation is None else f", {quantisation.summary}"
        return EngineInfo(
            kind="cpu",
            model=self._manifest.model,
            base_digest=self._manifest.base_digest,
            context_length=self._context,
            vocab_size=self._config.vocab,
            masks=self._masks.infos(),
            default_mask=self._manifest.default_mask,
            isa=self._model.isa,
            layout=None if layout is None else f"{layout.id} v{layout.version}",
            sparse_layers=self._model.sparse_layers(),
            eligible_layers=self._masks.eligible_layers,
            kernels=kernels_of(self._model),
            weight_bytes=self._model.weight_bytes + self._masks.resident_bytes(),
            version=own_version(),
            numerics=f"{own_version()}, layout version {VERSION}, {self._model.isa}{made}",
            dense_bytes=self._masks.dense_bytes,
            mask_budget=self._masks.residency.budget,
            values="bf16" if quantisation is None else quantisation.summary,
        )

    async def generate(self, request: GenerationRequest) -> AsyncIterator[GenerationChunk]:
        self._check_alive()
        check_request(request, self._config.vocab, self._context)
        variant = self._masks.resolve(request.mask)
        if answer := without_work(request):
            for chunk in answer:
                yield chunk
            return
        choices = request.sampling.n
        # Counted and pinned before the first await, so that neither can be taken away meanwhile.
        self._waiters.accept(choices)
        variant.pins += choices
        chunks: asyncio.Queue[GenerationChunk] = asyncio.Queue()
        sequences: list[Sequence] = []
        unfinished = choices
        try:
            if isinstance(variant, LoadedMask):
                await self._masks.residency.ensure(variant, self._loop.call)
            sequences = await self._sequences(request, variant, chunks.put_nowait)
            self._check_alive()
            self._live.update(dict.fromkeys(sequences))
            self._loop.add(sequences)
            while unfinished:
                chunk = await chunks.get()
                if self._death is not None:
                    raise EngineDeadError(f"the engine's thread died: {self._death!r}")
                unfinished -= chunk.finish_reason is not None
                yield chunk
        finally:
            if not sequences:
                self._waiters.leave(choices)
                self._unpin(variant, choices)
            elif unfinished and self._death is None and not self._closed:
                self._loop.abort(request.request_id)

    async def abort(self, request_id: str) -> None:
        if self._death is None and not self._closed:
            self._loop.abort(request_id)

    async def load_mask(self, name: str, path: Path) -> MaskInfo:
        self._check_alive()
        return await self._masks.load(name, path, self._loop.call)

    async def unload_mask(self, name: str) -> None:
        self._check_alive()
        mask = self._masks.unload(name)
        self._unpin(mask, 0)

    async def switch_base(self, name: str) -> MaskInfo:
        """Let a mask's weights take the place of the base mask's, in memory.

        From then on `name` runs as if the engine had been built for it, and the others, the old
        base among them, as patches to it. Costs no second set of weights; where they are mapped
        from the file, pages that change become this process's own.

        Raises:
            UnknownMaskError: no such mask.
            MaskError: a mask is in use (answers of running requests must not change), or one is
                kept as a copy (it may share layers with the base).
        """
        self._check_alive()
        return await self._masks.switch_base(name, self._loop.call, self._pool.forget)

    def stats(self) -> EngineStats:
        running, waiting = self._scheduler.running, self._scheduler.waiting
        counters = self._runner.counters
        return EngineStats(
            running=len(running),
            waiting=self._waiters.count,
            kv_used_share=self._pool.used / self._pool.total,
            kv_total_bytes=self._pool.total * self._model.native.page_bytes,
            steps=counters.steps,
            prompt_tokens=counters.prompt_tokens,
            generation_tokens=counters.generation_tokens,
            cached_tokens=self._scheduler.cached_tokens,
            preemptions=self._scheduler.preemptions,
            mask_switches=counters.mask_switches,
            mask_evictions=self._masks.residency.evictions,
            mask_restores=self._masks.residency.restores,
            running_masks=self._names(list(running)),
            waiting_masks=self._names(list(waiting)),
            seconds_since_step=self._loop.seconds_since_turn(),
        )

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._masks.residency.close()
        await asyncio.to_thread(self._loop.close)

    async def _sequences(
        self, request: GenerationRequest, variant: Variant, deliver: object
    ) -> list[Sequence]:
        prompt = request.prompt_token_ids
        eos = self._codec.eos_token_ids
        stops = stop_token_ids(request, eos)
        limit = token_limit(request, self._context)
        digest = variant.digest if isinstance(variant, LoadedMask) else None
        root = prefix_root(self._manifest.base_digest, digest, request.cache_salt)
        sequences: list[Sequence] = []
        for index in range(request.sampling.n):
            params = request.sampling.for_choice(index)
            constraint = None
            if params.structured is not None:
                constraint = await asyncio.to_thread(self._constraints.compile, params.structured)
            sequence = Sequence(
                request_id=request.request_id,
                index=index,
                arrival=next(self._arrivals),
                tokens=list(prompt),
                prompt_length=len(prompt),
                variant=variant,
                root=root,
                sampler=SequenceSampler(params, prompt, stops, constraint),
                text=ChoiceText(self._codec.stream_of(params, prompt), params, eos, limit),
                deliver=deliver,  # type: ignore[arg-type]
                prompt_logprobs=params.prompt_logprobs,
                scores_only=params.scores_only,
                leader=sequences[0] if sequences and self._options.prefix_cache else None,
            )
            sequences.append(sequence)
        return sequences

    def _ended(self, sequence: Sequence) -> None:
        self._live.pop(sequence, None)
        self._unpin(sequence.variant, 1)

    def _unpin(self, variant: Variant, count: int) -> None:
        variant.pins -= count
        if self._closed or variant.pins:
            return
        if isinstance(variant, LoadedMask) and variant.unloaded:
            self._loop.call(lambda: self._masks.free(variant))

    def _died(self, error: BaseException) -> None:
        self._death = error
        self._masks.residency.close()
        for sequence in list(self._live):
            sequence.deliver(
                GenerationChunk(
                    sequence.index, "", (), finish_reason="error", error="the engine has died"
                )
            )
        self._live.clear()

    def _check_alive(self) -> None:
        if self._death is not None:
            raise EngineDeadError(f"the engine's thread died: {self._death!r}")
        if self._closed:
            raise EngineDeadError("the engine is closed")

    def _names(self, sequences: list[Sequence]) -> tuple[str, ...]:
        """What requests call the masks of sequences."""
        variants = {sequence.variant for sequence in sequences}
        names = {variant.name for variant in variants if isinstance(variant, LoadedMask)}
        if self._masks.dense_bytes is not None and len(names) < len(variants):
            names.add(DENSE)
        return tuple(sorted(names))
