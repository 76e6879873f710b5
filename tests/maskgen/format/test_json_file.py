"""JSON files: every way to be unreadable is one line, and what is written is read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskgen.format.json_file import read_json, write_json


class JsonError(ValueError):
    pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a": "\\ud800"}', "is not JSON"),
        (b"[]", "holds list, expected an object"),
    ],
)
def test_unreadable_json_is_one_line(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(JsonError, match="is missing"):
        read_json(path, JsonError)
    path.write_bytes(text)
    with pytest.raises(JsonError, match=message) as caught:
        read_json(path, JsonError)
    assert "\n" not in str(caught.value)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    fields = {"a": [1, 2.5, None], "ä": {"b": "€"}}
    write_json(tmp_path / "x.json", fields)
    assert read_json(tmp_path / "x.json", JsonError) == fields
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
