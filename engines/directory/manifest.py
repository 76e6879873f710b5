"""`engine.json`: what an engine directory holds, for every target. docs/formats.md has the fields.

A reader refuses a newer format version, and any entry of `required_features` that it does not know,
so that a directory is never half understood.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from engines.errors import EngineDirectoryError, one_line
from engines.mask_rules import DENSE, NAME_PATTERN
from maskgen.format.json_file import read_json, write_json

MANIFEST_FILE = "engine.json"
ENGINE_WEIGHTS_FILE = "weights.safetensors"
COMPLEMENT_FILE = "complement.safetensors"
DENSE_FILE = "dense.safetensors"
MANIFEST_VERSION = 2
QUANTISED_VALUES = "quantised-values"
"""Required of readers where weights are int8 or int4: others would take them for bf16."""
DENSE_ARM = "dense-arm"
"""Required of readers where the dense model lies beside the masks."""
MANIFEST_FEATURES = frozenset({QUANTISED_VALUES, DENSE_ARM})
FILE_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,254}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,254}){0,7}$"
"""Relative names of files, without hidden ones and without a way out of the directory."""

_Label = Annotated[str, Field(max_length=200, pattern=r"^\P{C}*$")]
"""Text for people, without line breaks and other control characters."""

Target = Literal["cpu", "vllm", "tensorrt-llm", "reference"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileRecord(_Record):
    """A file as it was when the directory was built.

    Attributes:
        bytes: its size.
        sha256: of its content, hexadecimal; None in a directory of format version 1.
    """

    bytes: int = Field(ge=0)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


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
        storage: how an engine keeps it, where that is decided when the directory is built; None
            where the engine decides (and in format version 1).
    """

    name: str = Field(pattern=NAME_PATTERN)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    domain: _Label = ""
    method: _Label = ""
    layers: int = Field(ge=1)
    file: str = Field(pattern=FILE_PATTERN)
    changed_share: float = Field(default=0.0, ge=0.0, le=1.0)
    storage: Literal["base", "patch", "copy"] | None = None


class LayoutRecord(_Record):
    """The layout of the packed sparse weights.

    Attributes:
        id: the layout's name.
        values: type of the kept values: `bf16`, `int8` or `int4`.
        version: version of that layout.
        tuned_for: machine or GPU architecture that it was tuned for; empty where it makes no
            difference.
    """

    id: _Label
    values: _Label
    version: int = Field(ge=1)
    tuned_for: _Label = ""


class QuantisationRecord(_Record):
    """How values of other types than bf16 were made.

    Attributes:
        values: type of the linear layers' weights.
        block: inputs of a row that share a scale; 0 for bf16.
        minima: whether int4 blocks have a minimum of their own.
        head: type of the output head and the embedding.
        head_block: inputs of a row of those that share a scale; 0 for bf16.
        quantiser: `nearest`, or `gptq` with its feedback of errors.
        kind: `swappable` where values do not depend on a mask, so that others can be loaded;
            `single` where they were made for the one mask of the directory.
        calibration_digest: of the text that errors were weighed on; None where none was needed.
        version: of the layouts of int8 and int4 values.
    """

    values: Literal["bf16", "int8", "int4"]
    block: Literal[0, 32, 64, 128]
    minima: bool
    head: Literal["bf16", "int8"]
    head_block: Literal[0, 32, 64, 128]
    quantiser: Literal["nearest", "gptq"]
    kind: Literal["swappable", "single"]
    calibration_digest: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    version: int = Field(ge=1)

    @model_validator(mode="after")
    def _fits_together(self) -> QuantisationRecord:
        if (self.values == "bf16") != (self.block == 0) or (self.head == "bf16") != (
            self.head_block == 0
        ):
            raise ValueError("bf16 values have block 0, int8 and int4 ones another")
        if self.minima and self.values != "int4":
            raise ValueError(f"{self.values} values have no minima")
        if self.kind == "single" and self.quantiser == "nearest":
            raise ValueError("values by nearest are not single")
        if (self.quantiser == "nearest") != (self.calibration_digest is None):
            raise ValueError(f"values by {self.quantiser} with, or without, calibration_digest")
        return self

    @property
    def summary(self) -> str:
        """Values and how they were made, for people."""
        if self.values == "bf16":
            return f"bf16, head {self.head}"
        minima = " and minimum" if self.minima else ""
        return (
            f"{self.values} (scale{minima} per {self.block} inputs, {self.quantiser},"
            f" {self.kind}), head {self.head}"
        )


class Manifest(_Record):
    """The contents of `engine.json`.

    Attributes:
        target: the engine that can open the directory.
        model: the base model's name, as requests give it.
        base_digest: digest of the base model's tensors.
        masks: the masks; none in the directory of a dense engine.
        default_mask: the mask of a request that names none.
        layout: None when no layer is sparse.
        quantisation: how int8 and int4 values were made; None where all weights are bf16.
        dense: whether the directory holds the dense model beside its masks.
        sealed: whether masks can no longer be added, `complement.safetensors` having been left out.
        files: relative name -> what it was when the directory was built.
        details: what the target's own builder has to say, in its own form.
        created_by: name and version of the program that wrote the directory.
        identity: `identity_of` the other fields; empty until it is written.
    """

    format_version: int = MANIFEST_VERSION
    required_features: tuple[str, ...] = ()
    target: Target
    model: str = Field(max_length=200, pattern=r"^[^:\s][^:\p{C}]*$")
    base_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    masks: tuple[MaskRecord, ...] = ()
    default_mask: str | None = None
    layout: LayoutRecord | None = None
    quantisation: QuantisationRecord | None = None
    dense: bool = False
    sealed: bool = False
    files: dict[str, FileRecord] = Field(default_factory=dict)
    details: dict[str, JsonValue] = Field(default_factory=dict)
    created_by: _Label = ""
    identity: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")

    @model_validator(mode="after")
    def _names_agree(self) -> Manifest:
        names = [mask.name for mask in self.masks]
        if len(set(names)) != len(names):
            raise ValueError(f"mask names repeat: {', '.join(names)}")
        if self.default_mask is None and names:
            raise ValueError("masks without a default_mask")
        if self.default_mask is not None and self.default_mask not in names:
            raise ValueError(f"default_mask {self.default_mask!r} is not among the masks")
        if DENSE in names:
            raise ValueError(
                f"a mask is called {DENSE!r}, which requests call the model without a mask; build"
                " the directory again with another name"
            )
        for mask in self.masks:
            if mask.storage and (mask.storage == "base") != (mask.name == self.default_mask):
                raise ValueError(f"mask {mask.name!r} cannot be stored as {mask.storage}")
        return self

    @model_validator(mode="after")
    def _quantisation_is_required(self) -> Manifest:
        if (QUANTISED_VALUES in self.required_features) != (self.quantisation is not None):
            raise ValueError(f"a quantisation without {QUANTISED_VALUES}, or the reverse")
        single = self.quantisation is not None and self.quantisation.kind == "single"
        if single and (not self.sealed or len(self.masks) != 1):
            raise ValueError("values made for one mask need a sealed directory of one mask")
        return self

    @model_validator(mode="after")
    def _dense_arm_is_required(self) -> Manifest:
        if (DENSE_ARM in self.required_features) != self.dense:
            raise ValueError(f"a dense model without {DENSE_ARM}, or the reverse")
        if self.dense and (not self.masks or self.sealed):
            raise ValueError("a dense model lies beside masks, in a directory that is not sealed")
        return self

    @model_validator(mode="after")
    def _files_are_recorded(self) -> Manifest:
        for name, record in self.files.items():
            if not re.fullmatch(FILE_PATTERN, name):
                raise ValueError(f"files: {name[:80]!r} is no file of an engine directory")
            if self.has_digests and record.sha256 is None:
                raise ValueError(f"files: {name} has no sha256")
        if self.dense and DENSE_FILE not in self.files:
            raise ValueError(f"files: {DENSE_FILE} is not listed")
        for mask in self.masks:
            if self.has_digests and mask.file not in self.files:
                raise ValueError(f"files: {mask.file} of mask {mask.name!r} is not listed")
        return self

    @property
    def has_digests(self) -> bool:
        """Whether the files are recorded with their SHA-256, as they are since version 2."""
        return self.format_version >= 2

    @property
    def values(self) -> str:
        """Type of the linear layers' weights."""
        return self.quantisation.values if self.quantisation else "bf16"

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
    raw = read_json(path, EngineDirectoryError)
    # Version and features come first: a newer manifest may have fields that are errors here.
    version = raw.get("format_version")
    if type(version) is not int or version < 1:
        raise EngineDirectoryError(f"{path}: format_version is {version!r:.80}, expected a number")
    if version > MANIFEST_VERSION:
        raise EngineDirectoryError(
            f"{path} has format version {version}, this twofour reads up to {MANIFEST_VERSION}:"
            " update twofour or build the directory again"
        )
    features = raw.get("required_features", [])
    if not isinstance(features, list):
        raise EngineDirectoryError(f"{path}: required_features is {features!r:.80}, no list")
    unknown = sorted(set(map(str, features)) - MANIFEST_FEATURES)
    if unknown:
        raise EngineDirectoryError(
            f"{path} requires features that this twofour lacks: {', '.join(unknown)}"
        )
    try:
        manifest = Manifest.model_validate(_as_version_2(raw) if version == 1 else raw)
    except ValidationError as error:
        raise EngineDirectoryError(f"{path}: {first_fault(error)}") from error
    identity = identity_of(raw)
    if version > 1 and manifest.identity != identity:
        raise EngineDirectoryError(
            f"{path} is not as it was written: damaged, or edited by hand; build the directory"
            " again"
        )
    _check_sizes(directory, manifest)
    return manifest.model_copy(update={"identity": identity})


def identity_of(fields: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest's JSON object: sorted keys, no spaces, `identity` itself left out."""
    rest = {name: value for name, value in fields.items() if name != "identity"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong with a record, in one line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"])) or "the manifest"
    return one_line(f"{where}: {first['msg']}")


def _as_version_2(raw: dict[str, Any]) -> dict[str, Any]:
    """Version 1 gave sizes alone."""
    files = raw.get("files", {})
    if not isinstance(files, dict):
        return raw
    return raw | {"files": {name: {"bytes": size} for name, size in files.items()}}


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Write `engine.json`, whole or not at all; the last file of a new directory.

    Returns:
        The manifest with its identity.
    """
    fields = manifest.model_dump(mode="json")
    if manifest.quantisation is None:  # what twofour wrote before there was such a field
        del fields["quantisation"]
    if not manifest.dense:
        del fields["dense"]
    fields["identity"] = identity_of(fields)
    write_json(directory / MANIFEST_FILE, fields)
    return manifest.model_copy(update={"identity": fields["identity"]})


def _check_sizes(directory: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise EngineDirectoryError(f"{path} is missing: the engine directory is incomplete")
        if not path.resolve().is_relative_to(directory.resolve()):
            raise EngineDirectoryError(f"{directory}: {name!r} lies outside the directory")
        size = path.stat().st_size
        if size != expected.bytes:
            raise EngineDirectoryError(
                f"{path} has {size} bytes, {MANIFEST_FILE} says {expected.bytes}: truncated or"
                " changed; build the directory again"
            )
