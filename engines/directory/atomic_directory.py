"""An engine directory appears complete or not at all, and takes the place of no other folder."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from engines.directory.manifest import MANIFEST_FILE
from engines.errors import EngineDirectoryError
from maskgen.format.staging import put, staged


@contextlib.contextmanager
def atomic_directory(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary directory that becomes `out` when the block succeeds.

    Raises:
        EngineDirectoryError: `out` exists, or appeared meanwhile, and `overwrite` is False; or it
            is not an engine directory (those are never replaced).
    """
    out = out.resolve()
    if out.exists():
        _check_replaceable(out, overwrite)
    with staged(out) as (new, old):
        yield new
        if overwrite and out.exists():
            _replace(out, new, old)
        else:
            _put(out, new)


def _check_replaceable(out: Path, overwrite: bool) -> None:
    if not overwrite:
        raise EngineDirectoryError(
            f"{out} exists; remove it, choose another --out, or (to build) give --overwrite"
        )
    if not (out / MANIFEST_FILE).is_file():
        raise EngineDirectoryError(f"{out} exists and is no engine directory; not replaced")


def _put(out: Path, new: Path) -> None:
    try:
        put(out, new)
    except OSError as error:
        raise EngineDirectoryError(str(error)) from error


def _replace(out: Path, new: Path, old: Path) -> None:
    """Put `new` in the place of the engine directory `out`, which goes to `old`."""
    _check_replaceable(out, overwrite=True)
    out.rename(old)
    try:
        # Again, now that nobody can exchange it: another one may have come in between.
        _check_replaceable(old, overwrite=True)
        _put(out, new)
    except BaseException:
        back = out
        if os.path.lexists(out):  # somebody else's by now: the old one is kept beside it
            back = Path(tempfile.mkdtemp(prefix=f"{out.name}.", dir=out.parent))
        old.rename(back)
        raise
