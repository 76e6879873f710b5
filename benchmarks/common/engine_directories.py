"""The engine directories that a benchmark runs: given, or built for the time that it takes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from engines.cpu.build import build
from engines.directory.build import BuildRequest
from maskgen.models import model_name, resolve_model


@contextmanager
def engine_pair(
    dense: Path | None, sparse: Path | None, model: str | None, masks: Mapping[str, Path]
) -> Iterator[tuple[Path, Path]]:
    """A dense and a sparse engine directory of one model.

    Args:
        dense, sparse: engine directories.
        model: instead of both: what to build them from, with `masks`.
        masks: name -> file.

    Raises:
        ValueError: neither the one nor the other is given, or both are.
    """
    if model is None:
        if dense is None or sparse is None or masks:
            raise ValueError("give --dense and --sparse, or --model and --mask")
        yield dense, sparse
        return
    if dense is not None or sparse is not None or not masks:
        raise ValueError("give --model with at least one --mask, without --dense and --sparse")
    with tempfile.TemporaryDirectory(prefix="twofour-bench-") as folder:
        yield (
            build_engine(model, {}, Path(folder) / "dense"),
            build_engine(model, masks, Path(folder) / "sparse"),
        )


def build_engine(model: str, masks: Mapping[str, Path], out: Path) -> Path:
    """Build a directory for the CPU engine, and give its path."""
    build(BuildRequest(resolve_model(model), model_name(model), dict(masks), out))
    return out
