"""The arms of a comparison: engine directories that are served here, and servers that run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from benchmarks.common.server_process import ServerReport
from loadtests.mask_mix import MaskMix

REFERENCE = "dense"
"""The arm that ratios are taken against, unless another is named."""


class ComparisonError(RuntimeError):
    """The comparison would not mean what it says."""


@dataclass(frozen=True, slots=True)
class Arm:
    """What one side of a comparison asks, and whom.

    Attributes:
        name: as tables and files have it.
        directory: engine directory to serve; None with a `url`.
        url: address of a server that runs already.
        mask_mix: masks that its requests ask for; None is the server's default.
        model: `model` of its requests; None is the first that the server lists.
        kind: what it must turn out to be; None where either will do.
    """

    name: str
    directory: Path | None = None
    url: str | None = None
    mask_mix: str | None = None
    model: str | None = None
    kind: Literal["dense", "sparse"] | None = None

    @classmethod
    def parse(cls, text: str) -> Arm:
        """From `NAME=DIR`, `NAME=DIR@MASKS`, `NAME=http://HOST:PORT` or `...#MODEL`.

        MASKS is a mask mix: `one:a`, `uniform:a,b`, `zipf:a,b`. MODEL is of a URL alone.

        Raises:
            ValueError: any other text, or a directory that does not exist.
        """
        name, equals, target = text.partition("=")
        if not name or not equals or not target:
            raise ValueError(f"--arm {text!r}: give NAME=DIR, NAME=DIR@MASKS or NAME=URL")
        if target.startswith(("http://", "https://")):
            address, _, model = target.partition("#")
            if not urlsplit(address).hostname or "@" in address:
                raise ValueError(f"--arm {text!r}: no address such as http://127.0.0.1:8080")
            return cls(name, url=address.rstrip("/"), model=model or None)
        path, _, mix = target.partition("@")
        if not Path(path).is_dir():
            raise ValueError(f"--arm {text!r}: there is no engine directory {path}")
        if mix:
            MaskMix.parse(mix)
        return cls(name, directory=Path(path), mask_mix=mix or None)


def check_names(arms: Sequence[Arm], reference: str) -> None:
    """Refuse arms that cannot be told apart, or that have no reference among them.

    Raises:
        ValueError: naming what is wrong.
    """
    names = [arm.name for arm in arms]
    if len(set(names)) != len(names):
        raise ValueError(f"arms {', '.join(names)}: name each once")
    if any(not name.replace("-", "").replace("_", "").replace(".", "").isalnum() for name in names):
        raise ValueError(f"arms {', '.join(names)}: letters, digits, - . and _ only")
    if reference not in names:
        raise ValueError(f"--reference {reference!r} is none of {', '.join(names)}")


def check_reports(arms: Sequence[Arm], reports: dict[str, ServerReport]) -> None:
    """Refuse arms that are not what they are measured as.

    Raises:
        ComparisonError: a sparse arm without a sparse layer, a dense one with one, or arms of
            unlike models or instruction sets.
    """
    for arm in arms:
        if arm.name in reports:
            _check_kind(arm, reports[arm.name])
    first, *others = reports.values() if reports else [None]
    for other in others:
        if first is None or other is None:
            continue
        if first.base_digest != other.base_digest:
            raise ComparisonError(
                f"the arms {first.arm} and {other.arm} are unlike models: base digests "
                f"{first.base_digest[:12]}... and {other.base_digest[:12]}..."
            )
        if first.isa != other.isa:
            raise ComparisonError(
                f"the arms {first.arm} and {other.arm} run unlike kernels: {first.isa} and "
                f"{other.isa}"
            )


def _check_kind(arm: Arm, report: ServerReport) -> None:
    none_sparse = report.sparse_layers == 0
    if none_sparse and (arm.kind == "sparse" or report.eligible_layers > 0):
        raise ComparisonError(
            f"no layer of {report.directory} runs a sparse kernel "
            f"({report.eligible_layers} are eligible): there is nothing to compare"
        )
    if not none_sparse and arm.kind == "dense":
        raise ComparisonError(
            f"{report.sparse_layers} layers of {report.directory} run a sparse kernel: "
            "it is no dense baseline"
        )
