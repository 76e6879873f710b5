"""The targets: what builds a directory of each, and what runs it, imported when they are used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from engines.base import Engine
from engines.directory.build import BuildRequest
from engines.directory.manifest import Manifest, Target, read_manifest
from engines.directory.progress import BuildProgress, silent


@dataclass(frozen=True, slots=True)
class TargetEntry:
    """One target.

    Attributes:
        engine: `module:Class` of an `engines.base.Engine`.
        options: `module:Class` of the engine's options, read without the target's extra.
        builder: `module:function` that takes a `BuildRequest` and gives the manifest.
        settings: `module:Class` of what else the builder takes (`--option`), if anything.
        quantises: whether the builder makes int8 and int4 values.
        dense_arm: whether the builder can put the dense model beside masks.
    """

    engine: str
    options: str
    builder: str
    settings: str | None = None
    quantises: bool = False
    dense_arm: bool = False


TARGETS: dict[Target, TargetEntry] = {
    "cpu": TargetEntry(
        "engines.cpu.engine:CpuEngine",
        "engines.cpu.options:CpuOptions",
        "engines.cpu.build:build",
        quantises=True,
        dense_arm=True,
    ),
    "vllm": TargetEntry(
        "engines.vllm_plugin.engine:VllmEngine",
        "engines.vllm_plugin.options:VllmOptions",
        "engines.vllm_plugin.build:build",
        quantises=True,
    ),
    "tensorrt-llm": TargetEntry(
        "engines.tensorrt_llm.engine:TensorRtLlmEngine",
        "engines.tensorrt_llm.options:TensorRtLlmOptions",
        "engines.tensorrt_llm.build:build",
        "engines.tensorrt_llm.settings:BuildSettings",
    ),
    "reference": TargetEntry(
        "engines.reference.engine:ReferenceEngine",
        "engines.reference.options:ReferenceOptions",
        "engines.reference.build:build",
    ),
}


def find_target(target: str) -> TargetEntry:
    """The entry of a target.

    Raises:
        ValueError: there is no such target.
    """
    for name, entry in TARGETS.items():
        if name == target:
            return entry
    raise ValueError(f"target {target!r} is none of {', '.join(TARGETS)}")


def run_builder(
    target: str, request: BuildRequest, settings: Mapping[str, str] | None = None
) -> Manifest:
    """Build an engine directory with the target's builder.

    Args:
        target: one of `TARGETS`.
        request: what to build.
        settings: the builder's own, if it has any.

    Raises:
        ValueError: there is no such target, or it has no such values; or as the builder says.
    """
    entry = find_target(target)
    if not entry.quantises and (request.values_file or not request.values.plain):
        able = ", ".join(name for name, known in TARGETS.items() if known.quantises)
        raise ValueError(f"target {target} has bf16 weights only; int8 and int4 go with: {able}")
    if request.with_dense and not entry.dense_arm:
        able = ", ".join(name for name, known in TARGETS.items() if known.dense_arm)
        raise ValueError(
            f"target {target} cannot hold the dense model beside masks; {able} can; build a"
            " directory without masks for it"
        )
    manifest: Manifest = resolve_name(entry.builder)(request, **(settings or {}))
    return manifest


def open_engine(directory: Path, progress: BuildProgress = silent, /, **options: Any) -> Engine:
    """Open an engine directory with the engine of its target.

    Args:
        directory: what `twofour build` wrote.
        progress: told how much has been read.
        options: see the class of options of its target.

    Raises:
        EngineDirectoryError: the directory cannot be read, or holds what this build cannot run.
        ValueError: the engine has no such option, or its value is of no use.
        ModuleNotFoundError: the target's extra is not installed.
    """
    entry = TARGETS[read_manifest(directory).target]
    engine: Engine = resolve_name(entry.engine)(directory, progress=progress, **options)
    return engine
