"""`twofour info`: what this machine runs, what an engine directory holds, what runs a model."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from engines.directory.manifest import Manifest

_PACKAGES = ("twofour", "numpy", "tokenizers", "llguidance", "torch", "transformers", "vllm")


def info(
    subject: Annotated[
        str | None,
        typer.Argument(help="An engine directory, or a model: alias, directory, GGUF file."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON as the last line.")] = False,
) -> None:
    """Instruction sets, patterns, versions, twofour's own masks, and an engine or a model.

    Of a model it says which target runs it, or why not, before anything is built.
    """
    import json

    from engines.mask_rules import RUN_PATTERNS, describe_patterns

    report: dict[str, Any] = {
        "machine": _machine(),
        "patterns": {target: describe_patterns(target) for target in RUN_PATTERNS},
        "versions": _versions(),
        "masks": _masks("smollm2-135m"),
    }
    if subject is not None:
        report |= _about(subject)
    if as_json:
        typer.echo(json.dumps(report))
        return
    for title, facts in report.items():
        typer.secho(title, bold=True)
        for key, value in facts.items():
            typer.echo(f"  {key}: {value}")


def _about(subject: str) -> dict[str, Any]:
    from engines.directory.manifest import MANIFEST_FILE
    from twofour.commands.info_model import describe_model

    directory = Path(subject).expanduser()
    if (directory / MANIFEST_FILE).is_file():
        return {"engine": _engine(directory)}
    return describe_model(subject)


def _machine() -> dict[str, Any]:
    import psutil

    from engines.native import kernels

    sets = kernels.supported_isas()
    facts = {
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "instruction_sets": sets,
        "instruction_set": kernels.isa(),
        "forced_by_TWOFOUR_ISA": os.environ.get("TWOFOUR_ISA", ""),
    }
    if sets == ("portable",):
        facts["note"] = "portable kernels only: answers as good, at a fraction of the speed"
    return facts


def _masks(model: str) -> dict[str, str]:
    from twofour.shipped_masks import shipped_masks

    masks = shipped_masks(model)
    folder = masks.files["general"].parent
    return {model: ", ".join(masks.files), "folder": str(folder), "transform": str(masks.transform)}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _engine(directory: Path) -> dict[str, Any]:
    from engines.directory.manifest import read_manifest

    manifest = read_manifest(directory)
    facts: dict[str, Any] = {
        "target": manifest.target,
        "model": manifest.model,
        "base_digest": manifest.base_digest,
        "default_mask": manifest.default_mask,
        "masks": {m.name: f"{m.digest} {m.changed_share:.2%} changed" for m in manifest.masks},
        "pattern": _pattern(directory, manifest),
        "layout": manifest.layout.id if manifest.layout else None,
        "values": manifest.quantisation.summary if manifest.quantisation else "bf16",
        "dense": manifest.dense,
        "sealed": manifest.sealed,
        "bytes": sum(file.bytes for file in manifest.files.values()),
    }
    if manifest.target == "cpu":
        from engines.cpu.describe import kernels_of_directory, storage_of_directory

        facts["kernels"] = kernels_of_directory(directory)
        facts["mask_storage"] = storage_of_directory(directory)
    if manifest.target == "tensorrt-llm":
        from engines.tensorrt_llm.record import describe_engines

        facts["engines"] = describe_engines(directory)
    return facts


def _pattern(directory: Path, manifest: Manifest) -> str | None:
    from maskgen.format.mask_file import read_metadata

    if manifest.default_mask is None:
        return None
    return read_metadata(directory / manifest.mask(manifest.default_mask).file)["pattern"]
