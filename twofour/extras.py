"""Which extra of twofour's package brings a module that is missing."""

from __future__ import annotations

EXTRA_OF = {
    "torch": "train",
    "transformers": "train",
    "accelerate": "train",
    "scipy": "train",
    "locust": "load",
    "matplotlib": "load",
    "lm_eval": "eval",
    "opentelemetry": "tracing",
    "vllm": "vllm",
    "tensorrt_llm": "tensorrt-llm",
}


def missing_extra(error: ImportError) -> str | None:
    """What to install, on one line; None if no extra would help."""
    module = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or module not in EXTRA_OF:
        return None
    return f"this needs {module}, which is not installed: pip install 'twofour[{EXTRA_OF[module]}]'"
