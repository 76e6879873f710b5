"""Texts for calibration and evaluation: what a data argument means.

A data argument is the name of a fetched set (`wikipedia`, `c4`, `tinystories`, `python`; `:train`
or `:test` picks a split), a text file, a JSONL file (plain or gzipped) with a `text` field, a
directory of such files, or `hub:owner/name[:split]` for a Hugging Face data set. `self` (the model
writes its own calibration text) needs the model and is resolved in `maskgen.texts.self_text`.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import re
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from maskgen.fetch import PackagedFile, fetch

SPLITS = ("train", "test")
TEXT_SUFFIXES = (".txt", ".raw", ".md", ".py", ".html", ".js", ".utf8")
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz")

# Shorter ones are stubs and redirects, which teach nothing but their own template.
_MIN_ARTICLE_CHARACTERS = 500
_MAX_SOURCE_CHARACTERS = 32_768


class DataError(ValueError):
    """A data argument names nothing readable, or holds no text."""


@dataclass(frozen=True, slots=True)
class TextSet:
    """Documents of one data argument.

    Attributes:
        name: the argument, for labels.
        texts: the documents, in a fixed order.
        digest: SHA-256 over the documents, each with its length in front.
    """

    name: str
    texts: tuple[str, ...]
    digest: str

    @classmethod
    def of(cls, name: str, texts: Iterable[str]) -> TextSet:
        """A set of the texts that are not blank.

        Raises:
            DataError: no text is left.
        """
        kept = tuple(text for text in texts if text.strip())
        if not kept:
            raise DataError(f"{name} holds no text")
        digest = hashlib.sha256()
        for text in kept:
            data = text.encode()
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
        return cls(name, kept, digest.hexdigest())

    @property
    def characters(self) -> int:
        """Characters in all documents."""
        return sum(map(len, self.texts))


def load_texts(data: str) -> TextSet:
    """The documents of a data argument.

    Raises:
        DataError: unknown name, unreadable file, or no text in it.
        FetchError: a named set's package could not be downloaded.
    """
    if not data:
        raise DataError("data is empty: name a file, a folder or a named set")
    if data.startswith("hub:"):
        return TextSet.of(data, _hub_texts(data))
    name, _, split = data.partition(":")
    if name in NAMED_SETS:
        return TextSet.of(data, _pick_split(NAMED_SETS[name].read(), split, data))
    path = Path(data).expanduser()
    if not path.exists():
        raise DataError(
            f"data {data!r} is neither a file nor a folder nor a named set "
            f"({', '.join(NAMED_SETS)}); a hub data set is written hub:owner/name"
        )
    return TextSet.of(data, _path_texts(path))


def _path_texts(path: Path) -> Iterator[str]:
    if path.is_dir():
        suffixes = TEXT_SUFFIXES + JSONL_SUFFIXES
        files = sorted(p for p in path.rglob("*") if p.name.endswith(suffixes))
        for file in files:
            yield from _path_texts(file)
    elif path.name.endswith(JSONL_SUFFIXES):
        yield from _jsonl_texts(path)
    else:
        try:
            yield path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text: {error}") from error


def _jsonl_texts(path: Path) -> Iterator[str]:
    opener = gzip.open if path.name.endswith(".gz") else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line.strip():
                    yield _text_of_line(line, f"{path}, line {number}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged after line {number}: {error}") from error


def _text_of_line(line: bytes, where: str) -> str:
    try:
        text = json.loads(line.decode())["text"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: expected a JSON object with a `text` field") from error
    if not isinstance(text, str):
        raise DataError(f"{where}: `text` is not a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: character {error.start} of `text` is {text[error.start]!r}, a lone surrogate"
            " (half a character); write both halves or leave it out"
        ) from error
    return text


def _hub_texts(data: str) -> Iterator[str]:
    name, _, split = data.removeprefix("hub:").partition(":")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(f"{data} needs the datasets package: pip install datasets") from error
    for row in load_dataset(name, split=split or "train"):
        if not isinstance(row.get("text"), str):
            raise DataError(f"{data} has no `text` column")
        yield row["text"]


def _pick_split(texts: Iterable[str], split: str, data: str) -> Iterator[str]:
    """One document in eight is for testing, chosen by its own hash: adding documents moves none."""
    if split and split not in SPLITS:
        raise DataError(f"{data}: split {split!r} is not one of {', '.join(SPLITS)}")
    for text in texts:
        held_out = hashlib.sha256(text.encode()).digest()[0] % 8 == 0
        if not split or (split == "test") == held_out:
            yield text


@dataclass(frozen=True, slots=True)
class NamedSet:
    """A set that `twofour data fetch` brings: what it is, its licence, and how to read it."""

    description: str
    licence: str
    read: Callable[[], Iterable[str]]


def _sample(member: str, sha256: str, licence: str) -> PackagedFile:
    folder = "exllamav2/conversion/standard_cal_data"
    return PackagedFile("exllamav2", "0.3.2", f"{folder}/{member}", sha256, licence)


_WIKIPEDIA = _sample(
    "wiki.utf8", "d53fe0aeadf3355eb5d32b48bf8691575244c31caccae88ed46be8e1b40209c7", "CC BY-SA 3.0"
)
_C4 = _sample(
    "c4.utf8", "baf09e746b3fa464c7cb20d4f206969657ce632283bf1d43b0b8d421ddb14505", "ODC-BY"
)
_TINYSTORIES = _sample(
    "tiny.utf8",
    "e9f4ad209f66bf742e4f75cfdcb9bdef27534f57771ad655cff3543b5a9497de",
    "CDLA-Sharing-1.0",
)


def _wikipedia_articles() -> Iterator[str]:
    source = fetch(_WIKIPEDIA).read_text(encoding="utf-8")
    for article in re.findall(r"<doc [^>]*>\n(.*?)\n</doc>", source, flags=re.DOTALL):
        if len(article) >= _MIN_ARTICLE_CHARACTERS:
            yield article.strip()


def _c4_pages() -> Iterator[str]:
    yield from fetch(_C4).read_text(encoding="utf-8").splitlines()


def _tinystories() -> Iterator[str]:
    yield from fetch(_TINYSTORIES).read_text(encoding="utf-8").split("<|endoftext|>")


def _standard_library() -> Iterator[str]:
    """Python's own modules. They differ between Python versions; the digest says which ones."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if relative.parts[0] in ("site-packages", "test", "idlelib", "lib2to3"):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if len(text) >= _MIN_ARTICLE_CHARACTERS:
            yield text[:_MAX_SOURCE_CHARACTERS]


NAMED_SETS = {
    "wikipedia": NamedSet("English Wikipedia articles", _WIKIPEDIA.licence, _wikipedia_articles),
    "c4": NamedSet("118 web pages of C4", _C4.licence, _c4_pages),
    "tinystories": NamedSet("children's stories", _TINYSTORIES.licence, _tinystories),
    "python": NamedSet("Python's standard library", "PSF-2.0", _standard_library),
}
