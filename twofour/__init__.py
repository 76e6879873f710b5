"""Offline generation in Python: `from twofour import LLM, SamplingParams`.

What is named here is imported when it is first used, so that the command line starts quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engines.offline.llm import LLM
    from engines.offline.outputs import CompletionOutput, RequestOutput
    from engines.sampling import SamplingParams, StructuredOutput

__all__ = ["LLM", "CompletionOutput", "RequestOutput", "SamplingParams", "StructuredOutput"]

_MODULES = {
    "LLM": "engines.offline.llm",
    "CompletionOutput": "engines.offline.outputs",
    "RequestOutput": "engines.offline.outputs",
    "SamplingParams": "engines.sampling",
    "StructuredOutput": "engines.sampling",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
