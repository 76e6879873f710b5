"""Folders that appear complete or not at all, beside what is there and without touching it.

A folder is made in a staging folder beside its place, which its maker keeps locked. The lock goes
with the process, however that ends, so what a killed one left can be told from what is in use.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_FILE = "twofour-build.lock"
"""Marks a staging folder; whoever holds it uses the folder."""

OLD_FOLDER = "old"
"""In a staging folder: what is being replaced. It goes back if nothing takes its place."""

_NAME = re.compile(r"\.(?P<target>.+)\.[a-z0-9_]{8}")  # as `tempfile.mkdtemp` completes it
_NEW_FOLDER = "new"


@contextlib.contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A temporary directory that becomes `out` when the block succeeds.

    Raises:
        FileExistsError: `out` exists, or appeared meanwhile.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already; name a new directory")
    with staged(out) as (new, _):
        yield new
        put(out, new)


@contextlib.contextmanager
def staged(out: Path) -> Iterator[tuple[Path, Path]]:
    """An empty folder for what is to become `out`, and the path for what that replaces.

    Both lie in one staging folder in the parent of `out`, which is made if it is not there; what
    killed runs left beside it is removed.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(out.parent)
    with staging(out.parent, out.name) as folder:
        new = folder / _NEW_FOLDER
        new.mkdir()
        yield new, folder / OLD_FOLDER


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
            if (folder / OLD_FOLDER).is_dir() and not target.exists():
                # Its maker was killed between the two renames that replace a directory.
                (folder / OLD_FOLDER).rename(target)
            shutil.rmtree(folder, ignore_errors=True)


def put(out: Path, new: Path) -> None:
    """Rename the folder `new` to `out`.

    Raises:
        FileExistsError: there is something.
        OSError: the file system refuses.
    """
    try:
        # A rename alone would silently take the place of an empty folder; this claims the name.
        out.mkdir()
    except FileExistsError:
        raise FileExistsError(
            f"{out} appeared while its content was being made; not replaced: choose another --out"
        ) from None
    try:
        new.rename(out)
    except OSError as error:
        with contextlib.suppress(OSError):
            out.rmdir()  # the empty one from above, unless somebody uses it by now
        raise OSError(f"{out} cannot be put in its place: {error.strerror}") from error
