"""`engine.json`: what an engine directory holds, for every target; and how one comes to be.

Format version 1. A reader refuses a newer version, and any entry of `required_features` that it
does not know, so that a directory is never half understood.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from engines.errors import EngineDirectoryError, as_engine_directory_error
from maskgen.format.model_directory import read_json

MANIFEST_FILE = "engine.json"
WEIGHTS_FILE = "weights.safetensors"
COMPLEMENT_FILE = "complement.safetensors"
FORMAT_VERSION = 1
KNOWN_FEATURES: frozenset[str] = frozenset()
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What a mask may be called; a request names it as `<model>:<mask>`."""

Target = Literal["cpu", "vllm", "tensorrt-llm", "reference"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MaskRecord(_Record):
    """A mask that the directory carries.

    Attributes:
        name: what requests call it.
        digest: mask digest (hexadecimal SHA-256).
        domain: the domain it was made for.
        method: the method that made it.
        layers: linear layers that it lists.
        file: the mask file inside the directory.
        changed_share: share of its groups that differ from the default mask.
    """

    name: str = Field(pattern=NAME_PATTERN)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    domain: str = ""
    method: str = ""
    layers: int = Field(ge=1)
    file: str = Field(pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$")
    changed_share: float = Field(default=0.0, ge=0.0, le=1.0)


class LayoutRecord(_Record):
    """The layout of the packed sparse weights.

    Attributes:
        id: the layout's name.
        values: type of the kept values (`bf16`).
        version: version of that layout.
        tuned_for: machine or GPU architecture that it was tuned for; empty where it makes no
            difference.
    """

    id: str
    values: str
    version: int = Field(ge=1)
    tuned_for: str = ""


class Manifest(_Record):
    """The contents of `engine.json`.

    Attributes:
        target: the engine that can open the directory.
        model: the base model's name, as requests give it.
        base_digest: digest of the base model's tensors.
        masks: the masks; none in the directory of a dense engine.
        default_mask: the mask of a request that names none.
        layout: None when no layer is sparse.
        sealed: whether masks can no longer be added, `complement.safetensors` having been left out.
        files: file name -> bytes; checked when the directory is opened.
        details: what the target's own builder has to say, in its own form.
        created_by: name and version of the program that wrote the directory.
    """

    format_version: int = FORMAT_VERSION
    required_features: tuple[str, ...] = ()
    target: Target
    model: str = Field(pattern=r"^[^:\s][^:]*$")
    base_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    masks: tuple[MaskRecord, ...] = ()
    default_mask: str | None = None
    layout: LayoutRecord | None = None
    sealed: bool = False
    files: dict[str, int] = Field(default_factory=dict)
    details: dict[str, JsonValue] = Field(default_factory=dict)
    created_by: str = ""

    @model_validator(mode="after")
    def _names_agree(self) -> Manifest:
        names = [mask.name for mask in self.masks]
        if len(set(names)) != len(names):
            raise ValueError(f"mask names repeat: {', '.join(names)}")
        if self.default_mask is None and names:
            raise ValueError("masks without a default_mask")
        if self.default_mask is not None and self.default_mask not in names:
            raise ValueError(f"default_mask {self.default_mask!r} is not among the masks")
        return self

    def mask(self, name: str) -> MaskRecord:
        """The record of one mask (KeyError when there is none)."""
        for record in self.masks:
            if record.name == name:
                return record
        raise KeyError(name)


def read_manifest(directory: Path) -> Manifest:
    """Read and check `engine.json` and the sizes of the files it lists.

    Raises:
        EngineDirectoryError: no engine directory, a newer format, an unknown required feature,
            malformed fields, or a file that is missing or of another size.
    """
    path = directory / MANIFEST_FILE
    if not path.is_file():
        raise EngineDirectoryError(
            f"{directory} is no engine directory: {MANIFEST_FILE} is missing"
            " (`twofour build` makes one)"
        )
    with as_engine_directory_error():
        raw = read_json(path)
    # Version and features come first: a newer manifest may have fields that are errors here.
    version = raw.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise EngineDirectoryError(f"{path}: format_version is {version!r}, expected a number")
    if version > FORMAT_VERSION:
        raise EngineDirectoryError(
            f"{path} has format version {version}, this twofour reads up to {FORMAT_VERSION}:"
            " update twofour or build the directory again"
        )
    unknown = sorted(set(map(str, raw.get("required_features") or [])) - KNOWN_FEATURES)
    if unknown:
        raise EngineDirectoryError(
            f"{path} requires features that this twofour lacks: {', '.join(unknown)}"
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the manifest"
        raise EngineDirectoryError(f"{path}: {where}: {first['msg']}") from error
    _check_files(directory, manifest)
    return manifest


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `engine.json`, whole or not at all; the last file of a new directory."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n"
    temporary = directory / f".{MANIFEST_FILE}"
    temporary.write_text(text)
    temporary.replace(directory / MANIFEST_FILE)


def file_sizes(directory: Path) -> dict[str, int]:
    """Size of every file below `directory`, by relative name: the manifest's `files`."""
    paths = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {path.relative_to(directory).as_posix(): path.stat().st_size for path in paths}


def _check_files(directory: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()):
            raise EngineDirectoryError(f"{directory}: {name!r} lies outside the directory")
        if not path.is_file():
            raise EngineDirectoryError(f"{path} is missing: the engine directory is incomplete")
        size = path.stat().st_size
        if size != expected:
            raise EngineDirectoryError(
                f"{path} has {size} bytes, {MANIFEST_FILE} says {expected}: truncated or changed"
            )
