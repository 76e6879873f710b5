"""A stand-in for the `tensorrt_llm` package: its LLM API, deciding tokens by a rule.

The next token depends on the engine's folder and on the last token, so that a test sees which
engine answered; logits are random but fixed, with the next token the likeliest. Results behave as
TensorRT-LLM's do: cumulative token ids, `end_id` and stop tokens end them, `abort` cancels.
"""

from __future__ import annotations

import asyncio
import sys
import types
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch


@dataclass(kw_only=True)
class SamplingParams:
    """The fields that exist in TensorRT-LLM 1.2 and that the engine may use."""

    max_tokens: int
    end_id: int
    pad_id: int
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    detokenize: bool = True
    add_special_tokens: bool = True
    min_tokens: int | None = None
    return_generation_logits: bool = False
    return_context_logits: bool = False
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    temperature: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    embedding_bias: torch.Tensor | None = None


@dataclass
class KvCacheConfig:
    max_tokens: int
    enable_block_reuse: bool


@dataclass
class Completion:
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    generation_logits: torch.Tensor | None = None


class FakeResult:
    def __init__(self, llm: FakeLlm, prompt: list[int], params: SamplingParams, streaming: bool):
        self.llm, self.prompt, self.params, self.streaming = llm, prompt, params, streaming
        self.outputs = [Completion()]
        self.context_logits: torch.Tensor | None = None
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True

    async def __aiter__(self) -> AsyncIterator[FakeResult]:
        output, rows, last = self.outputs[0], [], self.prompt[-1]
        while output.finish_reason is None:
            await asyncio.sleep(0)
            if self.llm.gate is not None:
                await self.llm.gate.wait()
            if self.llm.broken:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            if self.aborted:
                output.finish_reason = "cancelled"
                break
            rows.append(self.llm.logits(last))
            last = self._pick(rows[-1])
            output.token_ids.append(last)
            stops = {self.params.end_id, *(self.params.stop_token_ids or ())}
            if last in stops:
                output.finish_reason = "stop"
                if last == self.params.end_id and self.llm.hide_end:
                    output.token_ids.pop()
            elif len(output.token_ids) >= self.params.max_tokens:
                output.finish_reason = "length"
            elif self.streaming:
                yield self
        if self.params.return_generation_logits and rows:
            output.generation_logits = torch.stack(rows)
        if self.params.return_context_logits:
            self.context_logits = torch.stack([self.llm.logits(token) for token in self.prompt])
        yield self

    def _pick(self, logits: torch.Tensor) -> int:
        if self.params.embedding_bias is not None:
            logits = logits + self.params.embedding_bias
        return int(logits.argmax())


class FakeLlm:
    """`tensorrt_llm._tensorrt_engine.LLM`; every instance is kept in `made`."""

    made: list[FakeLlm]
    gate: asyncio.Event | None = None
    broken = False
    hide_end = False

    def __init__(
        self,
        *,
        model: str,
        skip_tokenizer_init: bool,
        gather_generation_logits: bool,
        kv_cache_config: KvCacheConfig,
    ) -> None:
        assert skip_tokenizer_init
        assert gather_generation_logits
        assert (Path(model) / "rank0.engine").is_file()
        self.name = Path(model).name
        self.kv = kv_cache_config
        self.alive = True
        self.requests: list[tuple[list[int], SamplingParams, bool, str | None]] = []
        FakeLlm.made.append(self)

    def logits(self, last: int) -> torch.Tensor:
        """(vocab,) after token `last`: a fixed draw of this engine."""
        draw = torch.Generator().manual_seed(zlib.crc32(f"{self.name} {last}".encode()))
        return torch.randn(300, generator=draw)

    def expected(self, prompt: tuple[int, ...], count: int) -> list[int]:
        """The greedy continuation."""
        tokens = [prompt[-1]]
        for _ in range(count):
            tokens.append(int(self.logits(tokens[-1]).argmax()))
        return tokens[1:]

    def generate_async(
        self,
        inputs: list[int],
        sampling_params: SamplingParams,
        streaming: bool = False,
        cache_salt: str | None = None,
    ) -> FakeResult:
        if not self.alive:
            raise RuntimeError("LLM is shutting down")
        self.requests.append((inputs, sampling_params, streaming, cache_salt))
        return FakeResult(self, inputs, sampling_params, streaming)

    def shutdown(self) -> None:
        self.alive = False


def install_fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeLlm]:
    """Put the stand-in where `import tensorrt_llm` finds it."""
    package: Any = types.ModuleType("tensorrt_llm")
    engine: Any = types.ModuleType("tensorrt_llm._tensorrt_engine")
    api: Any = types.ModuleType("tensorrt_llm.llmapi")
    package.SamplingParams, engine.LLM, api.KvCacheConfig = SamplingParams, FakeLlm, KvCacheConfig
    for module in (package, engine, api):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(FakeLlm, "made", [], raising=False)
    for knob, value in (("gate", None), ("broken", False), ("hide_end", False)):
        monkeypatch.setattr(FakeLlm, knob, value)
    return FakeLlm
