"""Everything a TensorRT-LLM build takes beside the model and its masks."""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.directory.decoder_config import DecoderConfig
from engines.errors import EngineDirectoryError
from engines.tensorrt_llm.commands import BuildOptions
from engines.tensorrt_llm.config import Mapping, check_mapping
from engines.tensorrt_llm.record import PerMask


class BuildSettings(BaseModel):
    """Settings of a build; the names are also those of `twofour build --option NAME=VALUE`.

    Attributes:
        tp_size: tensor-parallel GPUs.
        pp_size: pipeline stages.
        dtype: of weights and arithmetic.
        per_mask: `engine`: one build per mask, the fastest engines; `refit`: one stripped plan
            that `trtllm-refit` fills per mask, far fewer builds.
        sparse: let TensorRT choose sparse tactics; False builds a dense engine to compare with.
        gemm_plugin: for dense engines, what multiplies: `disable`, `auto` or a type.
        allow_dense: accept sparse builds in which no layer uses a sparse tactic.
        max_batch_size: most sequences of one step.
        max_num_tokens: most tokens of one step.
        max_seq_len: most tokens of one sequence; by default 4096, or what the model allows.
        workers: ranks built at the same time, one GPU each.
        prompt_logprobs: keep what log-probs of prompts need.
        timing_cache: file of kernel timings to read and extend; one in the directory by default.
        trtllm_args: further arguments of `trtllm-build`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tp_size: int = Field(default=1, ge=1)
    pp_size: int = Field(default=1, ge=1)
    dtype: Literal["bfloat16", "float16"] = "bfloat16"
    per_mask: PerMask = "engine"
    sparse: bool = True
    gemm_plugin: str = "disable"
    allow_dense: bool = False
    max_batch_size: int = Field(default=64, ge=1)
    max_num_tokens: int = Field(default=8192, ge=1)
    max_seq_len: int | None = Field(default=None, ge=1)
    workers: int = Field(default=1, ge=1)
    prompt_logprobs: bool = False
    timing_cache: Path | None = None
    trtllm_args: tuple[str, ...] = ()

    @property
    def mapping(self) -> Mapping:
        """How each engine is spread over GPUs."""
        return Mapping(self.tp_size, self.pp_size)

    def options(self, decoder: DecoderConfig) -> BuildOptions:
        """The engine build of a model of this shape.

        Raises:
            EngineDirectoryError: the model cannot be cut or run like this.
        """
        check_mapping(decoder, self.mapping)
        # Engines are built without windows: a sequence must be too short to need one.
        longest = min((window for window in decoder.windows if window), default=decoder.context)
        length = min(longest, 4096) if self.max_seq_len is None else self.max_seq_len
        if length > longest:
            why = "tokens of sliding window" if any(decoder.windows) else "positions"
            raise EngineDirectoryError(f"max_seq_len {length} exceeds the model's {longest} {why}")
        return BuildOptions(
            max_batch_size=self.max_batch_size,
            max_num_tokens=self.max_num_tokens,
            max_seq_len=length,
            workers=self.workers,
            sparse=self.sparse,
            gemm_plugin=self.gemm_plugin,
            prompt_logprobs=self.prompt_logprobs,
            extra=self.trtllm_args,
        )


def parse_build_settings(values: MappingType[str, Any]) -> BuildSettings:
    """Settings from text or numbers; None leaves the default.

    Raises:
        EngineDirectoryError: a name is unknown, or a value is out of range.
    """
    given = {name: value for name, value in values.items() if value is not None}
    unknown = sorted(given.keys() - BuildSettings.model_fields.keys())
    if unknown:
        raise EngineDirectoryError(
            f"TensorRT-LLM builds have no setting {unknown[0]!r};"
            f" there are: {', '.join(BuildSettings.model_fields)}"
        )
    if isinstance(given.get("trtllm_args"), str):
        given["trtllm_args"] = tuple(given["trtllm_args"].split())
    try:
        return BuildSettings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise EngineDirectoryError(f"{name} is {first['input']!r}: {first['msg']}") from error
