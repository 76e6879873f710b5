"""What `engine.json` says of a TensorRT-LLM directory, and how a finished build gets in there."""

from __future__ import annotations

from collections.abc import Mapping as MappingType
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.directory.files import list_files, record_files
from engines.directory.manifest import MANIFEST_VERSION, Manifest, first_fault, write_manifest
from engines.directory.opening import open_directory
from engines.directory.progress import BuildProgress
from engines.errors import EngineDirectoryError
from engines.tensorrt_llm.commands import BuildOptions
from engines.tensorrt_llm.config import Mapping
from engines.tensorrt_llm.sparsity_log import SparsityReport, parse_log
from engines.tensorrt_llm.version import find_gpus, installed_version
from maskgen.format.json_file import read_json

BASE = "base"
"""Name of the one engine of a directory without masks."""

CHECKPOINTS, ENGINES, LOGS = "checkpoints", "engines", "logs"
PLAN = "_plan"
"""Folder and log of the stripped plan; no mask can have this name."""
SCRIPT_FILE, TIMING_CACHE = "build.sh", "timing.cache"
_HIDING_PLUGINS = ("gemm_plugin", "manage_weights")
_TRANSIENT = (CHECKPOINTS, LOGS, PLAN, SCRIPT_FILE, TIMING_CACHE)

PerMask = Literal["engine", "refit"]


class NoSparseTacticsError(EngineDirectoryError):
    """TensorRT built an engine in which no layer uses a sparse kernel."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineRecord(_Record):
    """One engine: a mask's, or the whole directory's when it has no masks.

    Attributes:
        directory: inside the engine directory, with `config.json` and `rankN.engine`.
        sparse_weights: linear weights of all ranks that are 2:4 in its checkpoint.
        dense_weights: linear weights of all ranks that are not.
        eligible: layers of all ranks that TensorRT found fit for sparse tactics; None before the
            build, and where the log did not say.
        chosen: layers of all ranks for which it chose one.
        bytes: of the engine files.
        built: whether it is there and its log was read; until then there is its checkpoint only.
    """

    directory: str
    built: bool = False
    sparse_weights: int = Field(ge=0)
    dense_weights: int = Field(ge=0)
    eligible: int | None = None
    chosen: int | None = None
    bytes: int = Field(default=0, ge=0)


class BuildRecord(_Record):
    """The `details` of the manifest of a TensorRT-LLM directory.

    Attributes:
        per_mask: `engine`: one build per mask; `refit`: one stripped plan, refitted per mask.
        sparse: whether TensorRT may choose sparse tactics.
        gemm_plugin: what multiplies in a dense engine.
        allow_dense: whether engines in which no layer uses one are accepted.
        engines: by mask name.
        tensorrt_llm: version that built the engines.
        gpus: GPUs of the machine that built them; engines run on the same architecture only.
        kv_bytes_per_token: of the KV cache, over all ranks.
        prompt_logprobs: whether the engines keep the logits of prompts.
    """

    per_mask: PerMask = "engine"
    sparse: bool = True
    gemm_plugin: str = "disable"
    allow_dense: bool = False
    dtype: str
    tp_size: int = Field(ge=1)
    pp_size: int = Field(ge=1)
    max_batch_size: int = Field(ge=1)
    max_num_tokens: int = Field(ge=1)
    max_seq_len: int = Field(ge=1)
    workers: int = Field(default=1, ge=1)
    trtllm_args: tuple[str, ...] = ()
    vocab_size: int = Field(ge=1)
    kv_bytes_per_token: int = Field(ge=1)
    prompt_logprobs: bool = False
    engines: dict[str, EngineRecord] = Field(min_length=1)
    tensorrt_llm: str | None = None
    gpus: tuple[str, ...] = ()

    @property
    def mapping(self) -> Mapping:
        """How each engine is spread over GPUs."""
        return Mapping(self.tp_size, self.pp_size)

    @property
    def options(self) -> BuildOptions:
        """How the engines are built."""
        return BuildOptions(
            max_batch_size=self.max_batch_size,
            max_num_tokens=self.max_num_tokens,
            max_seq_len=self.max_seq_len,
            workers=self.workers,
            sparse=self.sparse,
            gemm_plugin=self.gemm_plugin,
            prompt_logprobs=self.prompt_logprobs,
            extra=self.trtllm_args,
        )


def read_record(directory: Path) -> tuple[Manifest, BuildRecord]:
    """Read and check `engine.json` of a TensorRT-LLM directory.

    Raises:
        EngineDirectoryError: it is unreadable, or of another target.
    """
    return _with_record(directory, open_directory(directory, "tensorrt-llm", verify=False))


def open_record(
    directory: Path, *, verify: bool, progress: BuildProgress
) -> tuple[Manifest, BuildRecord]:
    """As `read_record`, for serving.

    Args:
        verify, progress: see `engines.directory.opening.open_directory`.

    Raises:
        EngineDirectoryError: as `read_record`; or a file is not what was built.
    """
    manifest = open_directory(directory, "tensorrt-llm", verify=verify, progress=progress)
    return _with_record(directory, manifest)


def _with_record(directory: Path, manifest: Manifest) -> tuple[Manifest, BuildRecord]:
    try:
        record = BuildRecord.model_validate(manifest.details)
    except ValidationError as error:
        raise EngineDirectoryError(
            f"{directory}: engine.json: details: {first_fault(error)}"
        ) from error
    return manifest, record


def describe_engines(directory: Path) -> dict[str, str]:
    """By mask: what TensorRT chose, in words."""
    _, record = read_record(directory)
    return {name: describe_engine(engine, record) for name, engine in record.engines.items()}


def describe_engine(engine: EngineRecord, record: BuildRecord) -> str:
    """What TensorRT chose for one engine, in words."""
    if not engine.built:
        return f"not built yet; run {SCRIPT_FILE}"
    tactics = f"{engine.chosen} of {engine.eligible} eligible layers use a sparse tactic"
    return f"{tactics if record.sparse else 'dense'}, {engine.bytes / 2**20:.0f} MiB"


def write_record(directory: Path, manifest: Manifest, record: BuildRecord) -> None:
    """Write `engine.json` anew, with the files that serving needs as they are now."""
    update = {
        "format_version": MANIFEST_VERSION,
        "details": record.model_dump(mode="json"),
        "files": record_files(directory, serving_files(directory)),
    }
    write_manifest(directory, manifest.model_copy(update=update))


def serving_files(directory: Path) -> list[str]:
    """The files that serving needs: not the checkpoints, logs and timings."""
    return [name for name in list_files(directory) if name.partition("/")[0] not in _TRANSIENT]


def record_build(directory: Path) -> BuildRecord:
    """Read the logs of all engines and write what they say into `engine.json`.

    Raises:
        EngineDirectoryError: an engine or its log is missing or of another shape.
        NoSparseTacticsError: no layer of an engine uses a sparse tactic, and the directory was
            not made with `allow_dense`. `engine.json` then stays as it was.
    """
    manifest, record = read_record(directory)
    reports = _read_logs(directory, record)
    engines = {
        name: _finished(directory, engine, record, reports[name])
        for name, engine in record.engines.items()
    }
    if record.sparse and not record.allow_dense:
        _demand_sparse(directory, engines, reports)
    update = {
        "engines": engines,
        "tensorrt_llm": installed_version(),
        "gpus": find_gpus(),
    }
    record = record.model_copy(update=update)
    write_record(directory, manifest, record)
    return record


def _read_logs(directory: Path, record: BuildRecord) -> MappingType[str, SparsityReport]:
    """Each engine's report: of its own build, or of the plan that it was refitted from."""
    if record.per_mask == "engine":
        return {name: _read_log(directory, name) for name in record.engines}
    plan = _read_log(directory, PLAN)
    for name in record.engines:
        if _read_log(directory, name).refit_refused:
            raise NoSparseTacticsError(
                f"TensorRT refused to refit {name!r}: the plan uses a sparse tactic for a layer"
                f" whose new weights are not 2:4 (see {directory / LOGS / name}.log)"
            )
    return dict.fromkeys(record.engines, plan)


def _read_log(directory: Path, name: str) -> SparsityReport:
    path = directory / LOGS / f"{name}.log"
    if not path.is_file():
        raise EngineDirectoryError(f"{path} is missing; run {directory / SCRIPT_FILE} again")
    with path.open(errors="replace") as lines:
        return parse_log(lines)


def _finished(
    directory: Path, engine: EngineRecord, record: BuildRecord, report: SparsityReport
) -> EngineRecord:
    folder = directory / engine.directory
    files = [folder / f"rank{rank}.engine" for rank in range(record.mapping.world_size)]
    for path in (folder / "config.json", *files):
        if not path.is_file():
            raise EngineDirectoryError(
                f"{path} is missing; run {directory / SCRIPT_FILE} to build it"
            )
    _check_flags(folder, record)
    return engine.model_copy(
        update={
            "eligible": report.eligible if report.reported else None,
            "chosen": report.chosen if report.reported else None,
            "bytes": sum(path.stat().st_size for path in files),
            "built": True,
        }
    )


def _check_flags(folder: Path, record: BuildRecord) -> None:
    """The engine's own configuration must say what the command asked for."""
    path = folder / "config.json"
    config = read_json(path, EngineDirectoryError)
    try:
        built = config["build_config"]
        sparsity, plugins = bool(built["weight_sparsity"]), dict(built.get("plugin_config") or {})
    except (ValueError, KeyError, TypeError) as error:
        raise EngineDirectoryError(
            f"{path} is no TensorRT-LLM engine configuration: {error!r}"
        ) from error
    wrong = [] if sparsity == record.sparse else [f"weight_sparsity {sparsity}"]
    if record.sparse:
        wrong += [f"{name} {plugins[name]}" for name in _HIDING_PLUGINS if plugins.get(name)]
    if wrong:
        raise EngineDirectoryError(
            f"{folder} was built with {', '.join(wrong)}, not with the flags of {SCRIPT_FILE};"
            " remove it and run the script again"
        )


def _demand_sparse(
    directory: Path,
    engines: MappingType[str, EngineRecord],
    reports: MappingType[str, SparsityReport],
) -> None:
    for name, engine in engines.items():
        log = directory / LOGS
        if not reports[name].reported:
            raise NoSparseTacticsError(
                f"the build log of {name!r} says nothing about sparse tactics (see {log});"
                " it needs --log_level verbose and --weight_sparsity"
            )
        if not engine.eligible:
            raise NoSparseTacticsError(
                f"{name!r}: TensorRT found no layer eligible for sparse tactics although"
                f" {engine.sparse_weights} weights are 2:4: something hides them from it"
                f" (see {log} and the flags in {SCRIPT_FILE})"
            )
        if not engine.chosen:
            raise NoSparseTacticsError(
                f"{name!r}: of {engine.eligible} eligible layers TensorRT chose a sparse tactic"
                " for none: the dense kernels are faster at these sizes on this GPU. Give"
                " --allow-dense to keep the engine all the same"
            )
