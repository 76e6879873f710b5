"""The report: drawn from a folder alone, whole in one file, and silent about void numbers."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.serve.folder import read_folder, write_report
from benchmarks.serve.html_report import html_report
from tests.benchmarks.serve.results_folder import make_folder

ARMS = ("dense", "sparse & more")


def _folder(folder: Path, *, error: str | None = None, doubts: tuple[str, ...] = ()) -> Path:
    """Of two arms, two loads and two repeats; `error` fails the last block."""
    made = make_folder(
        folder,
        ARMS,
        lambda arm, users, repeat: 1.0 + (arm == ARMS[1]),
        errors={(ARMS[1], 8, 1): error} if error else None,
        doubts=doubts,
    )
    write_report(made)
    return made


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that nothing is wrong with."""
    return _folder(tmp_path_factory.mktemp("sound") / "run")


class _Page(HTMLParser):
    """Tags with their attributes, and the text, of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_is_whole_in_one_file(sound: Path) -> None:
    text = (sound / "report.html").read_text()
    page = _Page(text)
    names = [tag for tag, _ in page.tags]
    assert not {"script", "link", "img", "iframe"} & set(names)
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert "url(http" not in text
    # Load and ratio of the one length, and the distributions of two loads.
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    ids = [set(re.findall(r'<clipPath id="(\w+)"', drawing)) for drawing in drawings]
    assert all(ids)
    assert len(set.union(*ids)) == sum(map(len, ids)), "drawings of one page share ids"


def test_the_report_has_the_numbers_and_what_they_rest_on(sound: Path) -> None:
    page = _Page((sound / "report.html").read_text())
    found = read_folder(sound)
    assert "No request failed" in page.text
    assert "sparse & more" in page.text
    for row in found.result["rows"]:
        assert f"{row['tokens_per_s']:.3g}" in page.text
    for known in ("cpu", "system"):
        assert str(found.result["machine"][known]) in page.text
    assert found.result["versions"]["numpy"] in page.text
    assert found.result["command"] in page.text
    assert len(found.blocks) == 8
    assert [sample.ttft_s for sample in found.samples()["dense-8-0.jsonl"]] == [0.4] * 3


def test_a_void_report_says_so_and_has_no_number_of_what_failed(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "run", error="ConnectionRefusedError: refused")
    page = _Page((folder / "report.html").read_text())
    assert "Void: measuring ended here" in page.text
    assert "3 x ConnectionRefusedError: refused" in page.text
    result = read_folder(folder).result
    assert {row["concurrency"] for row in result["rows"]} == {1}
    assert "7/5 tokens, 8 at a time: void, not drawn" in page.text
    assert "**Void**" in (folder / "serve.md").read_text()


def test_a_forced_report_is_not_to_be_quoted(tmp_path: Path) -> None:
    doubts = [f"block {i}: the load generator took 93% of a core" for i in range(9)]
    folder = _folder(tmp_path / "run", doubts=tuple(doubts))
    page = _Page((folder / "report.html").read_text())
    assert "do not quote" in page.text
    assert page.text.count("took 93% of a core") == 5
    assert "and 4 more" in page.text


def test_a_report_can_be_drawn_again(sound: Path) -> None:
    first = (sound / "report.html").read_text()
    (sound / "report.html").unlink()
    assert write_report(sound).read_text() == first


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no results folder"):
        read_folder(tmp_path)
    (tmp_path / "serve.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(ValueError, match="is not of this version"):
        read_folder(tmp_path)


def test_one_arm_alone_has_no_ratio(sound: Path) -> None:
    found = read_folder(sound)
    result = found.result | {
        "arms": {"dense": found.result["arms"]["dense"]},
        "rows": [row for row in found.result["rows"] if row["arm"] == "dense"],
    }
    own = [b for b in found.blocks if b.arm == "dense"]
    text = html_report(result, own, found.samples())
    assert text.count("<svg") == 3
