"""Which TensorRT-LLM this code is written for, and what of it is present here."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
from dataclasses import dataclass

from engines.errors import EngineDirectoryError

TARGET_VERSION = "1.2.1"
SUPPORTED = re.compile(r"^1\.2\.\d+(?:[.+-].*)?$")
"""The 1.2 line: TensorRT-LLM removed its TensorRT backend afterwards."""

EXIT_TOOLS_MISSING = 3
"""Exit code of a build that wrote everything but engines, for want of TensorRT-LLM or a GPU."""

_GPU_QUERY = ("--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader")
MIN_COMPUTE_CAPABILITY = (8, 0)
"""Ampere: the first GPUs with sparse tensor cores."""


class ToolsMissingError(EngineDirectoryError):
    """TensorRT-LLM 1.2 or a GPU that it can use is absent; commands end with `exit_code`."""

    exit_code = EXIT_TOOLS_MISSING


@dataclass(frozen=True, slots=True)
class Environment:
    """What was found.

    Attributes:
        version: of TensorRT-LLM; None when it is not installed.
        tools: `trtllm-build` and `trtllm-refit` -> path, those that were found.
        gpus: one line for each GPU: name, compute capability, memory.
        problems: one sentence for each thing that is missing; empty when engines can be built.
    """

    version: str | None
    tools: dict[str, str]
    gpus: tuple[str, ...]
    problems: tuple[str, ...]

    def require(self) -> None:
        """Raise ToolsMissingError unless engines can be built here."""
        if self.problems:
            raise ToolsMissingError("; ".join(self.problems))


def installed_version() -> str | None:
    """The version of TensorRT-LLM in this Python environment, without importing it."""
    try:
        return importlib.metadata.version("tensorrt_llm")
    except importlib.metadata.PackageNotFoundError:
        return None


def version_problem(version: str | None) -> str | None:
    """Why this version of TensorRT-LLM cannot be used; None when it can."""
    if version is None:
        return f"TensorRT-LLM is not installed (pip install tensorrt-llm=={TARGET_VERSION})"
    if not SUPPORTED.match(version):
        return (
            f"TensorRT-LLM {version} is installed, but 2:4 engines need the 1.2 line"
            f" ({TARGET_VERSION}): later ones have no TensorRT backend, earlier ones are untested"
        )
    return None


def find_environment() -> Environment:
    """Look for TensorRT-LLM, its command-line tools and a GPU with sparse tensor cores."""
    version = installed_version()
    problems = [problem for problem in (version_problem(version),) if problem]
    found = {name: shutil.which(name) for name in ("trtllm-build", "trtllm-refit")}
    tools = {name: path for name, path in found.items() if path is not None}
    missing = sorted(found.keys() - tools.keys())
    if missing:
        problems.append(f"{' and '.join(missing)} not on PATH")
    gpus = find_gpus()
    if not gpus:
        problems.append("no NVIDIA GPU (nvidia-smi lists none)")
    elif not any(_capable(gpu) for gpu in gpus):
        problems.append(
            f"no GPU has sparse tensor cores (compute capability 8.0 or higher): {'; '.join(gpus)}"
        )
    return Environment(version, tools, gpus, tuple(problems))


def find_gpus() -> tuple[str, ...]:
    """Name, compute capability and memory of every GPU, as nvidia-smi prints them."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return ()
    try:
        result = subprocess.run(
            [smi, *_GPU_QUERY], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    if result.returncode:
        return ()
    return tuple(line.strip() for line in result.stdout.splitlines() if line.strip())


def _capable(gpu: str) -> bool:
    match = re.search(r",\s*(\d+)\.(\d+)\s*,", gpu)
    return match is not None and (int(match[1]), int(match[2])) >= MIN_COMPUTE_CAPABILITY
