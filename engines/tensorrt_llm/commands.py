"""The command lines of `trtllm-build` and `trtllm-refit`, and the flags that defeat sparsity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.errors import EngineDirectoryError
from engines.tensorrt_llm.preflight import PreflightError

_MANAGED = (
    "--checkpoint_dir",
    "--output_dir",
    "--weight_sparsity",
    "--gemm_plugin",
    "--strip_plan",
    "--max_batch_size",
    "--max_num_tokens",
    "--max_seq_len",
    "--gather_context_logits",
    "--workers",
    "--profiling_verbosity",
    "--log_level",
    "--input_timing_cache",
    "--output_timing_cache",
)
_TRAPS = {
    "--fast_build": "turns the weights into network inputs, so that TensorRT sees no 2:4 constants",
    "--build_config": "replaces every flag given here, --weight_sparsity among them",
    "--model_config": "builds from a configuration alone, without the checkpoint's weights",
    "--dry_run": "builds no engine",
    "--gemm_swiglu_plugin": "hides the MLP's weights in a plugin",
    "--low_latency_gemm_plugin": "hides the weights in a plugin",
    "--low_latency_gemm_swiglu_plugin": "hides the MLP's weights in a plugin",
    "--model_cls_file": "replaces the model, so that nothing is known about its weights",
}


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Settings of an engine build.

    Attributes:
        max_batch_size: most sequences of one step.
        max_num_tokens: most tokens of one step.
        max_seq_len: most tokens of one sequence, prompt and generated.
        workers: ranks built at the same time, one GPU each.
        sparse: let TensorRT choose sparse tactics.
        gemm_plugin: `disable`, which sparse engines need, or a type (`auto`, `bfloat16`).
        strip_plan: leave the weights out of the engine, for `trtllm-refit` to put in.
        prompt_logprobs: keep the logits of prompts, which log-probs of prompts need.
        extra: further arguments for `trtllm-build`.
    """

    max_batch_size: int = 64
    max_num_tokens: int = 8192
    max_seq_len: int = 4096
    workers: int = 1
    sparse: bool = True
    gemm_plugin: str = "disable"
    strip_plan: bool = False
    prompt_logprobs: bool = False
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_num_tokens", "max_seq_len", "workers"):
            if getattr(self, name) < 1:
                raise EngineDirectoryError(f"{name} must be 1 or more, got {getattr(self, name)}")
        _check_extra(self.extra)


def build_command(
    checkpoint: Path | str,
    out: Path | str,
    options: BuildOptions,
    *,
    timing_cache: Path | str | None = None,
    new_timing_cache: Path | str | None = None,
    tool: str = "trtllm-build",
) -> list[str]:
    """The arguments that build one engine.

    Args:
        checkpoint: TensorRT-LLM checkpoint directory.
        out: directory for `config.json` and `rankN.engine`.
        options: what to build.
        timing_cache: kernel timings of earlier builds; TensorRT-LLM ignores a missing file.
        new_timing_cache: where the timings of this build go.
        tool: `trtllm-build` or its path.

    Raises:
        PreflightError: the flags would make a sparse build run dense kernels.
    """
    command = [tool, "--checkpoint_dir", str(checkpoint), "--output_dir", str(out)]
    # Always explicit: the default has changed between versions, and `auto` hides every weight.
    command += ["--gemm_plugin", options.gemm_plugin]
    if options.sparse:
        command.append("--weight_sparsity")
    if options.strip_plan:
        command.append("--strip_plan")
    if options.prompt_logprobs:
        command.append("--gather_context_logits")
    for name in ("max_batch_size", "max_num_tokens", "max_seq_len", "workers"):
        command += [f"--{name}", str(getattr(options, name))]
    # The sparsity report is in TensorRT's verbose log.
    command += ["--profiling_verbosity", "detailed", "--log_level", "verbose"]
    if timing_cache is not None:
        command += ["--input_timing_cache", str(timing_cache)]
    if new_timing_cache is not None:
        command += ["--output_timing_cache", str(new_timing_cache)]
    command += options.extra
    if options.sparse:
        check_sparse_command(command)
    return command


def refit_command(
    plan: Path | str, checkpoint: Path | str, out: Path | str, *, tool: str = "trtllm-refit"
) -> list[str]:
    """The arguments that put a checkpoint's weights into a stripped plan."""
    directories = {"--engine_dir": plan, "--checkpoint_dir": checkpoint, "--output_dir": out}
    flags = [word for flag, path in directories.items() for word in (flag, str(path))]
    return [tool, *flags, "--log_level", "verbose"]


def check_sparse_command(command: Sequence[str]) -> None:
    """Raise PreflightError when a `trtllm-build` command line cannot give a sparse engine.

    For command lines from anywhere; those that `build_command` makes always pass.
    """
    problems = list(_trap_problems(command))
    if not any(_means(flag, "--weight_sparsity") for flag, _ in _flags(command)):
        problems.append("--weight_sparsity is missing: TensorRT does not look for 2:4 weights")
    plugins = [value for flag, value in _flags(command) if _means(flag, "--gemm_plugin")]
    problems += [
        f"--gemm_plugin is {plugin or 'not given'}: the plugin calls cuBLASLt and hides the"
        " weights from TensorRT; give --gemm_plugin disable"
        for plugin in plugins or [None]
        if plugin != "disable"
    ]
    if problems:
        raise PreflightError("this trtllm-build command", problems)


def _check_extra(extra: Sequence[str]) -> None:
    managed = [flag for flag, _ in _flags(extra) for known in _MANAGED if _means(flag, known)]
    if managed:
        raise EngineDirectoryError(
            f"{managed[0]} is set by twofour and cannot be given as an extra argument;"
            " use the option of the same name"
        )


def _trap_problems(command: Sequence[str]) -> Iterator[str]:
    for flag, value in _flags(command):
        for trap, why in _TRAPS.items():
            if _means(flag, trap) and value != "disable":
                yield f"{trap} {why}; leave it out"


def _means(flag: str, known: str) -> bool:
    """Whether argparse may take `flag` for `known`: it accepts abbreviations."""
    return flag == known or (len(flag) > len("--x") and known.startswith(flag))


def _flags(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """(flag, value) in order, `--flag=value` taken apart."""
    for here, word in enumerate(words):
        if not word.startswith("--"):
            continue
        flag, equals, value = word.partition("=")
        if equals:
            yield flag, value
            continue
        following = words[here + 1] if here + 1 < len(words) else "--"
        yield flag, None if following.startswith("--") else following
