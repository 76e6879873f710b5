"""Pages are Markdown that the formatter leaves alone."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.common.page import changed_groups, commands, markdown_table, number, page, percent

RESULT: dict[str, Any] = {
    "command": "twofour bench x --dense dense --sparse sparse --lengths 128/128,1024/128 "
    "--concurrency 1,8,32 --repeats 2; twofour bench x --keep",
    "date": "2026-11-26T00:00:00+00:00",
    "machine": {"cpu": "AMD EPYC", "cores": 2, "memory_gib": 23.5, "system": "Linux"},
    "machine_class": "avx2",
    "versions": {"python": "3.11.7"},
    "data_digests": {"text": "0" * 64, "windows": "4"},
    "other_cpu_share": 0.5,
    "rows": [{"other_cpu_share": 0.012}],
    "notes": ["A long note that goes on and on, " * 5, "short"],
}


def test_a_page_is_as_the_formatter_writes_it() -> None:
    mdformat = pytest.importorskip("mdformat")
    shown = markdown_table(
        ["arm", "tokens/s"], [["sparse", 1234.5], ["dense", None], ["other", 12]]
    )
    text = page("Title", "What is compared. " * 12, RESULT, "## Part", shown)
    options = {"wrap": 100, "number": True, "plugin": {"tables": {"compact_tables": True}}}
    assert mdformat.text(text, options=options, extensions={"gfm", "tables"}) == text
    assert "| sparse | 1,234 |" in text or "| sparse | 1,235 |" in text
    assert "| dense |  |" in text
    assert "Other processes took at most 1.2 % of the CPU." in " ".join(text.split())
    assert "text `0000000000000000`." in " ".join(text.split())
    assert "windows" not in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_long_commands_are_continued() -> None:
    assert commands(RESULT["command"]).splitlines() == [
        "```sh",
        "twofour bench x --dense dense --sparse sparse --lengths 128/128,1024/128 "
        "--concurrency 1,8,32 \\",
        "    --repeats 2",
        "twofour bench x --keep",
        "```",
    ]


def test_numbers_have_as_many_digits_as_they_are_good_for() -> None:
    assert [number(value) for value in (0.0, 0.01234, 1.0, 12.34, 123.4, 12345.6)] == [
        "0", "0.0123", "1.00", "12.3", "123", "12,346",
    ]  # fmt: skip
    assert [percent(value) for value in (0.00072, 0.0013, 0.304, 1.93)] == [
        "0.072 %", "0.13 %", "30.4 %", "193 %",
    ]  # fmt: skip
    assert number(None) == percent(None) == changed_groups(None) == ""
    assert changed_groups(0.0) == "< 0.001 %"
