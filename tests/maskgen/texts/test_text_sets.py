from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from maskgen.texts.text_sets import DataError, TextSet, load_texts


def test_text_file_jsonl_and_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first")
    rows = "\n".join(json.dumps({"text": t}) for t in ("second", "third"))
    (tmp_path / "b.jsonl").write_text(rows + "\n\n")
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "fourth", "src": "x"}))
    (tmp_path / "ignored.bin").write_bytes(b"\xff\xfe")
    assert load_texts(str(tmp_path / "b.jsonl")).texts == ("second", "third")
    assert load_texts(str(tmp_path)).texts == ("first", "second", "third", "fourth")


def test_digest_depends_on_document_boundaries() -> None:
    digests = {TextSet.of("x", texts).digest for texts in (["ab", "c"], ["a", "bc"], ["abc"])}
    assert len(digests) == 3
    assert TextSet.of("x", ["ab", "  "]).digest == TextSet.of("y", ["ab"]).digest


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "holds no text"),
        ("blank.txt", b" \n\n", "holds no text"),
        ("binary.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("rows.jsonl", b'{"text": "x"}\n{"body": "y"}\n', "line 2"),
        ("rows.jsonl", b"[1]\n", "line 1"),
        ("rows.jsonl", b'{"text": 3}\n', "not a string"),
        (
            "rows.jsonl",
            b'{"text": "x"}\n{"text": "y \\ud83d z"}\n',
            "line 2: character 2 .*surrogate",
        ),
        ("rows.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "line 2"),
        ("rows.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n", "line 1"),
        ("rows.jsonl.gz", b"no gzip", "damaged after line 0"),
        (
            "rows.jsonl.gz",
            gzip.compress(b'{"text": "x"}\n' * 99, mtime=0)[:-9],
            r"rows\.jsonl\.gz is damaged",
        ),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_texts(str(path))


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(DataError, match="wikipedia"):
        load_texts("wikipaedia")
    with pytest.raises(DataError, match="not one of train, test"):
        load_texts("python:validation")


def test_splits_part_the_standard_library() -> None:
    whole = load_texts("python").texts
    train, test = load_texts("python:train").texts, load_texts("python:test").texts
    assert sorted(train + test) == sorted(whole)
    assert 0 < len(test) < len(train)
