"""Engine classes by target, imported when a directory of that target is opened."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from engines.base import Engine
from engines.directory.manifest import Target, read_manifest
from engines.directory.progress import Progress, silent

ENGINES: dict[Target, str] = {
    "cpu": "engines.cpu.engine:CpuEngine",
    "vllm": "engines.vllm_plugin.engine:VllmEngine",
    "tensorrt-llm": "engines.tensorrt_llm.engine:TensorRtLlmEngine",
    "reference": "engines.reference.engine:ReferenceEngine",
}


def open_engine(directory: Path, progress: Progress = silent, /, **options: Any) -> Engine:
    """Open an engine directory with the engine of its target.

    Args:
        directory: what `twofour build` wrote.
        progress: told how much has been read.
        options: what the engine class takes beside the directory.

    Raises:
        EngineDirectoryError: the directory cannot be read, or holds what this build cannot run.
        ValueError: the engine has no such option.
        ModuleNotFoundError: the target's extra is not installed.
    """
    manifest = read_manifest(directory)
    module, _, name = ENGINES[manifest.target].partition(":")
    factory = getattr(importlib.import_module(module), name)
    parameters = inspect.signature(factory).parameters
    known = [name for name in parameters if name not in ("directory", "progress")]
    for option in options:
        if option not in known:
            raise ValueError(
                f"the {manifest.target} engine has no option {option!r}; it has: {', '.join(known)}"
            )
    engine: Engine = factory(directory, progress=progress, **options)
    return engine
