"""Command lines: ours always pass the check, everybody else's traps are named."""

from __future__ import annotations

import pytest

from engines.errors import EngineDirectoryError
from engines.tensorrt_llm.commands import (
    BuildOptions,
    build_command,
    check_sparse_command,
    refit_command,
)
from engines.tensorrt_llm.preflight import PreflightError

GOOD = ["trtllm-build", "--checkpoint_dir", "ck", "--weight_sparsity", "--gemm_plugin", "disable"]


def test_the_command_of_a_sparse_build() -> None:
    options = BuildOptions(max_batch_size=8, max_seq_len=2048, prompt_logprobs=True, workers=2)
    command = build_command("ck", "out", options, timing_cache="a", new_timing_cache="b")
    assert " ".join(command) == (
        "trtllm-build --checkpoint_dir ck --output_dir out --gemm_plugin disable --weight_sparsity"
        " --gather_context_logits --max_batch_size 8 --max_num_tokens 8192 --max_seq_len 2048"
        " --workers 2 --profiling_verbosity detailed --log_level verbose"
        " --input_timing_cache a --output_timing_cache b"
    )


def test_the_dense_arms() -> None:
    with_plugin = build_command("ck", "out", BuildOptions(sparse=False, gemm_plugin="bfloat16"))
    assert with_plugin[with_plugin.index("--gemm_plugin") + 1] == "bfloat16"
    assert "--weight_sparsity" not in with_plugin
    without = build_command("ck", "out", BuildOptions(sparse=False))
    assert without[without.index("--gemm_plugin") + 1] == "disable"


def test_the_plugin_cannot_be_combined_with_sparsity() -> None:
    with pytest.raises(PreflightError, match=r"--gemm_plugin is auto.*cuBLASLt"):
        build_command("ck", "out", BuildOptions(gemm_plugin="auto"))


def test_refit_command() -> None:
    assert " ".join(refit_command("plan", "ck", "out")) == (
        "trtllm-refit --engine_dir plan --checkpoint_dir ck --output_dir out --log_level verbose"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fast_build"], "--fast_build turns"),
        (["--fast"], "--fast_build turns"),
        (["--build_config", "x.json"], "--build_config replaces"),
        (["--gemm_plugin", "auto"], "--gemm_plugin is auto"),
        (["--gemm_plugin=float16"], "--gemm_plugin is float16"),
        (["--gemm_p", "fp8"], "--gemm_plugin is fp8"),
        (["--gemm_swiglu_plugin", "fp8"], "--gemm_swiglu_plugin hides"),
        (["--dry_run"], "--dry_run"),
    ],
)
def test_traps_in_other_command_lines(words: list[str], message: str) -> None:
    check_sparse_command(GOOD)
    with pytest.raises(PreflightError, match=message):
        check_sparse_command(GOOD + words)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["trtllm-build", "--gemm_plugin", "disable"], "--weight_sparsity is missing"),
        (["trtllm-build", "--weight_sparsity"], "--gemm_plugin is not given"),
    ],
)
def test_what_must_be_there(command: list[str], message: str) -> None:
    with pytest.raises(PreflightError, match=message):
        check_sparse_command(command)


def test_disabled_plugins_are_harmless() -> None:
    check_sparse_command([*GOOD, "--low_latency_gemm_plugin", "disable"])
    check_sparse_command([*GOOD, "--gpt_attention_plugin", "auto"])


@pytest.mark.parametrize("name", ["max_batch_size", "max_num_tokens", "max_seq_len", "workers"])
def test_sizes_are_positive(name: str) -> None:
    with pytest.raises(EngineDirectoryError, match=f"{name} must be 1 or more, got 0"):
        BuildOptions(**{name: 0})
