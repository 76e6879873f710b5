"""A folder that appears complete or not at all, beside what is there and without touching it.

It is made in a staging folder beside its place, which its maker keeps locked. The lock goes with
the process, however that ends, so what a killed one left can be told from what is in use.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from engines.directory.manifest import MANIFEST_FILE
from engines.errors import EngineDirectoryError

LOCK_FILE = "twofour-build.lock"
"""Marks a staging folder; whoever holds it uses the folder."""

_NAME = re.compile(r"\.(?P<target>.+)\.[a-z0-9_]{8}")  # as `tempfile.mkdtemp` completes it
_NEW, _OLD = "new", "old"


@contextlib.contextmanager
def atomic_directory(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary directory that becomes `out` when the block succeeds.

    Raises:
        EngineDirectoryError: `out` exists, or appeared meanwhile, and `overwrite` is False; or it
            is not an engine directory (those are never replaced).
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(out.parent)
    if out.exists():
        _check_replaceable(out, overwrite)
    with staging(out.parent, out.name) as folder:
        new = folder / _NEW
        new.mkdir()
        yield new
        if overwrite and out.exists():
            _replace(out, new, folder / _OLD)
        else:
            _put(out, new)


@contextlib.contextmanager
def staging(parent: Path, name: str) -> Iterator[Path]:
    """A folder in `parent` for what is to become `parent/name`; removed in the end."""
    folder = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=parent))
    unseen = folder / f"{LOCK_FILE}.new"
    try:
        with FileLock(unseen, timeout=0):
            # Under its own name only once it is held: nobody finds it free before that.
            unseen.rename(folder / LOCK_FILE)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_stale(parent: Path) -> None:
    """Remove the staging folders in `parent` whose makers are gone; nothing else."""
    for folder in sorted(parent.iterdir()):
        match = _NAME.fullmatch(folder.name)
        if match is None or folder.is_symlink() or not (folder / LOCK_FILE).is_file():
            continue
        with contextlib.suppress(Timeout, OSError), FileLock(folder / LOCK_FILE, timeout=0):
            target = parent / match["target"]
            if (folder / _OLD).is_dir() and not target.exists():
                # Its maker was killed between the two renames that replace a directory.
                (folder / _OLD).rename(target)
            shutil.rmtree(folder, ignore_errors=True)


def _check_replaceable(out: Path, overwrite: bool) -> None:
    if not overwrite:
        raise EngineDirectoryError(
            f"{out} exists; remove it, choose another --out, or give --overwrite"
        )
    if not (out / MANIFEST_FILE).is_file():
        raise EngineDirectoryError(f"{out} exists and is no engine directory; not replaced")


def _put(out: Path, new: Path) -> None:
    """Rename `new` to `out`, which must not exist."""
    try:
        # A rename alone would silently take the place of an empty folder; this claims the name.
        out.mkdir()
    except FileExistsError:
        raise EngineDirectoryError(
            f"{out} appeared while its content was being made; not replaced: choose another --out"
        ) from None
    try:
        new.rename(out)
    except OSError as error:
        with contextlib.suppress(OSError):
            out.rmdir()  # the empty one from above, unless somebody uses it by now
        raise EngineDirectoryError(f"{out} cannot be put in its place: {error.strerror}") from error


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
