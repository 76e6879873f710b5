"""The reference engine: transformers with masked dense weights. Slow, and the oracle in tests.

Each sequence runs alone, in float32, with its own cache; nothing is batched, so nothing can leak
between sequences. Switching the mask rewrites the masked weights. On a GPU it runs in bf16 with
PyTorch's semi-structured tensors instead, and switching copies packed weights in place.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

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
from engines.decoding.request_checks import (
    check_request,
    scored,
    stop_token_ids,
    token_limit,
    without_work,
)
from engines.decoding.sampler import SequenceSampler, logprobs_of, sample
from engines.decoding.structured_output import ConstraintCompiler
from engines.directory.build import changed_share
from engines.directory.opening import open_directory, read_own_mask
from engines.directory.progress import BuildProgress, silent
from engines.errors import (
    EngineDeadError,
    EngineOverloadedError,
    MaskError,
)
from engines.mask_rules import (
    MaskedLayers,
    check_load,
    check_requested,
    check_unload,
    read_fitting,
)
from engines.reference.model import load_transformers_model
from engines.reference.options import ReferenceOptions
from engines.reference.semi_structured import PackedMasks, checked_device, has_sparse_kernels
from engines.reference.weights import linears_of, weights_of
from engines.text import TextCodec
from engines.typed_options import read_options
from maskgen.format.mask import Mask


@dataclass
class _Choice:
    """One sequence while it runs."""

    index: int
    mask: str | None
    tokens: list[int]
    text: ChoiceText
    sampler: SequenceSampler
    prompt_logprobs: int | None
    scores_only: bool
    cache: Any = None
    fed: int = 0


class ReferenceEngine(Engine):
    """See `engines.base.Engine`.

    Args:
        directory: a directory that `engines.reference.build` wrote.
        progress: told how much has been read.
        options: see `ReferenceOptions`.

    Raises:
        EngineDirectoryError: the directory is malformed, or the device cannot run it.
        ValueError: an option is unknown or out of range.
    """

    def __init__(
        self,
        directory: Path,
        *,
        progress: BuildProgress = silent,
        **options: Any,
    ) -> None:
        chosen = read_options(ReferenceOptions, options, "the reference engine")
        manifest = open_directory(directory, "reference", verify=chosen.verify, progress=progress)
        self._manifest = manifest
        self._codec = TextCodec(directory)
        self._device = checked_device(chosen.device)
        sparse = has_sparse_kernels(self._device)
        dtype = torch.bfloat16 if sparse else torch.float32
        self._model = load_transformers_model(directory, dtype)
        torch.nn.Module.to(self._model.eval(), self._device)
        # Renamed in transformers 5.24.
        accepted = inspect.signature(self._model.forward).parameters
        self._cache_argument = "cache" if "cache" in accepted else "past_key_values"
        self._masks = {m.name: read_own_mask(directory, manifest, m) for m in manifest.masks}
        layers = () if manifest.default_mask is None else self._masks[manifest.default_mask].codes
        self._layers = frozenset(layers)
        self._weights: dict[str, torch.Tensor] = {}
        self._dense: dict[str, torch.Tensor] = {}
        self._packed: PackedMasks | None = None
        if sparse and layers:
            self._packed = PackedMasks(linears_of(self._model, layers))
            for name, mask in self._masks.items():
                self._packed.add(name, mask)
        else:
            self._weights = weights_of(self._model, layers)
            self._dense = {layer: weight.clone() for layer, weight in self._weights.items()}
        self._active: str | None = None
        self._max_requests = chosen.max_requests
        self._running: dict[str, bool] = {}
        self._pinned: dict[str, int] = {}
        self._stats = EngineStats()
        self._last_step = time.monotonic()
        self._closed = False
        # One thread: torch calls never overlap, and requests take turns at every token.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="reference-engine")
        config = self._model.config
        self._constraints = ConstraintCompiler(self._codec, config.vocab_size)
        self._vocab_size = int(config.vocab_size)
        self._context = int(config.max_position_embeddings)

    @property
    def codec(self) -> TextCodec:
        return self._codec

    @property
    def constraints(self) -> ConstraintCompiler:
        return self._constraints

    def describe(self) -> EngineInfo:
        return EngineInfo(
            kind="reference",
            model=self._manifest.model,
            base_digest=self._manifest.base_digest,
            context_length=self._context,
            vocab_size=self._vocab_size,
            masks=tuple(self._mask_info(name) for name in self._masks),
            default_mask=self._manifest.default_mask,
            isa="torch" if self._device.type == "cpu" else str(self._device),
            layout=None if self._packed is None else "cutlass",
            sparse_layers=0 if self._packed is None else len(self._packed.sparse_layers),
            eligible_layers=len(self._layers),
            kernels={} if self._packed is None else self._packed.kernels(),
            weight_bytes=sum(p.nbytes for p in self._model.parameters()),
            version=f"transformers {transformers.__version__}",
            numerics=f"transformers {transformers.__version__}, torch {torch.__version__},"
            f" {torch.get_num_threads()} threads, {self._device}",
        )

    async def generate(self, request: GenerationRequest) -> AsyncIterator[GenerationChunk]:
        if self._closed:
            raise EngineDeadError("the engine is closed")
        check_request(request, self._vocab_size, self._context)
        mask = self._resolve(request.mask)
        if answer := without_work(request):
            for chunk in answer:
                yield chunk
            return
        if len(self._running) >= self._max_requests:
            raise EngineOverloadedError(f"{self._max_requests} requests are in progress")
        key = request.request_id
        self._running[key] = True
        if mask is not None:
            self._pinned[mask] = self._pinned.get(mask, 0) + 1
        try:
            choices = [await self._start(request, mask, i) for i in range(request.sampling.n)]
            while choices:
                for choice in list(choices):
                    chunk = await self._turn(choice, key)
                    if chunk.finish_reason is not None:
                        choices.remove(choice)
                    yield chunk
        finally:
            self._running.pop(key, None)
            if mask is not None:
                self._pinned[mask] -= 1

    async def abort(self, request_id: str) -> None:
        if request_id in self._running:
            self._running[request_id] = False

    async def load_mask(self, name: str, path: Path) -> MaskInfo:
        check_load(name, self._masks, self._manifest.default_mask, self._manifest.sealed)
        assert self._manifest.default_mask is not None  # check_load
        layers = MaskedLayers.of(self._masks[self._manifest.default_mask])
        digest = self._manifest.base_digest
        mask = await asyncio.to_thread(read_fitting, name, path, "reference", digest, layers)
        if self._packed is not None:
            await asyncio.get_running_loop().run_in_executor(
                self._pool, self._packed.add, name, mask
            )
        self._masks[name] = mask
        return self._mask_info(name)

    async def unload_mask(self, name: str) -> None:
        check_unload(name, self._masks, self._manifest.default_mask)
        if self._pinned.get(name):
            raise MaskError(f"{name!r} is in use; the reference engine cannot unload it now")
        del self._masks[name]
        if self._packed is not None:
            self._packed.remove(name)
        if self._active == name:
            self._active = None

    def stats(self) -> EngineStats:
        busy = bool(self._running)
        age = time.monotonic() - self._last_step if busy else 0.0
        return replace(self._stats, running=len(self._running), seconds_since_step=age)

    async def close(self) -> None:
        self._closed = True
        for key in self._running:
            self._running[key] = False
        await asyncio.to_thread(self._pool.shutdown)

    def _resolve(self, name: str | None) -> str | None:
        if name is None:
            return self._manifest.default_mask
        check_requested(name, self._masks)
        return name

    def _mask_info(self, name: str) -> MaskInfo:
        mask = self._masks[name]
        default = self._manifest.default_mask
        assert default is not None  # masks imply a default: the manifest checks it
        return MaskInfo(
            name=name,
            digest=mask.digest,
            domain=mask.domain,
            storage="base" if name == default else "copy",
            changed_share=changed_share(mask, self._masks[default]),
            pinned=self._pinned.get(name, 0),
        )

    async def _start(self, request: GenerationRequest, mask: str | None, index: int) -> _Choice:
        params = request.sampling.for_choice(index)
        constraint = None
        if params.structured is not None:
            constraint = await asyncio.to_thread(self._constraints.compile, params.structured)
        eos = self._codec.eos_token_ids
        prompt = request.prompt_token_ids
        limit = token_limit(request, self._context)
        return _Choice(
            index=index,
            mask=mask,
            tokens=list(prompt),
            text=ChoiceText(self._codec.stream_of(params, prompt), params, eos, limit),
            sampler=SequenceSampler(params, prompt, stop_token_ids(request, eos), constraint),
            prompt_logprobs=params.prompt_logprobs,
            scores_only=params.scores_only,
        )

    async def _turn(self, choice: _Choice, key: str) -> GenerationChunk:
        """Run one token of one choice; a failure ends only this choice."""
        if not self._running[key]:
            return GenerationChunk(choice.index, choice.text.flush(), (), finish_reason="abort")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._pool, self._advance, choice)
        except Exception as error:
            message = str(error) or type(error).__name__
            return GenerationChunk(choice.index, "", (), finish_reason="error", error=message)

    def _advance(self, choice: _Choice) -> GenerationChunk:
        first = choice.fed == 0
        # Scoring needs none that predicts beyond the prompt, so the last token stays out.
        logits = self._forward(choice, len(choice.tokens) - choice.scores_only)
        self._last_step = time.monotonic()
        prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
        if first and choice.prompt_logprobs is not None:
            rows = [
                logprobs_of(logits[i], choice.tokens[i + 1], choice.prompt_logprobs)
                for i in range(len(choice.tokens) - 1)
            ]
            prompt_logprobs = (None, *rows)
        if choice.scores_only:
            self._count(prompt_tokens=choice.fed)
            return scored(choice.index, prompt_logprobs or ())
        (sampled,) = sample(logits[-1:], [choice.sampler])
        if sampled.error is not None:
            return GenerationChunk(
                choice.index,
                "",
                (),
                finish_reason="error",
                error=sampled.error,
                invalid=sampled.invalid,
            )
        choice.tokens.append(sampled.token_id)
        constraint = choice.sampler.constraint
        piece = choice.text.push(
            sampled.token_id,
            constraint_finished=constraint is not None and constraint.finished,
        )
        self._count(prompt_tokens=choice.fed if first else 0, generation_tokens=1)
        return GenerationChunk(
            index=choice.index,
            text=piece.text,
            token_ids=(sampled.token_id,),
            logprobs=None if sampled.logprobs is None else (sampled.logprobs,),
            prompt_logprobs=prompt_logprobs,
            finish_reason=piece.finish_reason,
            stop_reason=piece.stop_reason,
        )

    def _count(self, prompt_tokens: int, generation_tokens: int = 0) -> None:
        self._stats = replace(
            self._stats,
            steps=self._stats.steps + 1,
            prompt_tokens=self._stats.prompt_tokens + prompt_tokens,
            generation_tokens=self._stats.generation_tokens + generation_tokens,
        )

    @torch.no_grad()
    def _forward(self, choice: _Choice, end: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        self._activate(choice.mask)
        if choice.cache is None:
            choice.cache = transformers.DynamicCache(config=self._model.config)
        ids = torch.tensor([choice.tokens[choice.fed : end]], device=self._device)
        cache = {self._cache_argument: choice.cache}
        output = self._model(input_ids=ids, use_cache=True, **cache)
        choice.fed = end
        logits: np.ndarray[Any, np.dtype[np.float32]] = output.logits[0].float().cpu().numpy()
        return logits

    def _activate(self, name: str | None) -> None:
        if name == self._active or name is None:
            return
        mask: Mask = self._masks[name]
        if self._packed is not None:
            self._packed.activate(name)
        for layer, dense in self._dense.items():
            keep = torch.from_numpy(mask.keep(layer))
            self._weights[layer].copy_(dense * keep)
        self._active = name
        self._stats = replace(self._stats, mask_switches=self._stats.mask_switches + 1)
