"""Everything a TensorRT-LLM build takes beside the model and its masks."""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from engines.directory.decoder_config import DecoderConfig
from engines.errors import EngineDirectoryError
from engines.tensorrt_llm.commands import BuildOptions
from engines.tensorrt_llm.config import Mapping, check_mapping
from engines.tensorrt_llm.record import PerMask
from engines.typed_options import TypedOptions, read_options


class BuildSettings(TypedOptions):
    """Settings of a build; the names are also those of `twofour build --option NAME=VALUE`."""

    tp_size: int = Field(1, ge=1, description="Tensor-parallel GPUs.")
    pp_size: int = Field(1, ge=1, description="Pipeline stages, each on a GPU.")
    dtype: Literal["bfloat16", "float16"] = Field(
        "bfloat16",
        description="Type of weights and arithmetic; in `float16` TensorRT-LLM inserts a cast"
        " behind every weight.",
    )
    per_mask: PerMask = Field(
        "engine",
        description="`engine`: one build per mask, the fastest engines. `refit`: one stripped plan"
        " that `trtllm-refit` fills per mask, far fewer builds.",
    )
    sparse: bool = Field(
        True,
        description="TensorRT may choose sparse tactics; false builds a dense engine to compare"
        " with.",
    )
    gemm_plugin: str = Field(
        "disable", description="For dense engines, what multiplies: `disable`, `auto` or a type."
    )
    allow_dense: bool = Field(
        False, description="Accept sparse builds in which no layer uses a sparse tactic."
    )
    max_batch_size: int = Field(64, ge=1, description="Most sequences of one step.")
    max_num_tokens: int = Field(8192, ge=1, description="Most tokens of one step.")
    max_seq_len: int | None = Field(
        None,
        ge=1,
        description="Most tokens of one sequence. None: 4096, or what the model allows if that is"
        " less.",
    )
    workers: int = Field(
        1,
        ge=1,
        description="Ranks built at a time, one GPU each; above 1 the log cannot be told apart by"
        " rank.",
    )
    prompt_logprobs: bool = Field(
        False,
        description="Keep the logits of prompts, which their log-probs need; switches the reuse of"
        " prefixes off.",
    )
    timing_cache: Path | None = Field(
        None,
        description="File of kernel timings to read and extend, shared by all builds that name it."
        " None: `timing.cache` in the directory.",
    )
    trtllm_args: tuple[str, ...] = Field((), description="Further arguments of `trtllm-build`.")

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
    if isinstance(given.get("trtllm_args"), str):
        given["trtllm_args"] = tuple(given["trtllm_args"].split())
    try:
        return read_options(BuildSettings, given, "the tensorrt-llm builder")
    except ValueError as error:
        raise EngineDirectoryError(str(error)) from error
