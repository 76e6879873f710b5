"""The report: drawn from a folder alone, whole in one file, and silent about void numbers."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.serve.arms import Arm
from benchmarks.serve.compare import ServeComparison
from benchmarks.serve.folder import read_folder, write_folder, write_report
from benchmarks.serve.html_report import html_report
from benchmarks.serve.plan import LoadPlan
from loadtests.blocks import Block, LoadPoint, problems
from loadtests.calibration import Bias
from loadtests.comparison import rows
from loadtests.samples import RequestSample, SampleWriter
from loadtests.summary import summarise

ARMS = ("dense", "sparse & more")


def _samples(speed: float, users: int, error: str | None = None) -> list[RequestSample]:
    times = [0.05 * users + i * 0.01 / speed for i in range(5)]
    return [
        RequestSample(
            request_id=f"r-{i}", index=i, warmup=False, endpoint="/v1/completions", model="m",
            mask=None, prompt_id="p", scheduled_at=i, started_at=i, started_unix=1.8e9,
            ttft_s=times[0], e2e_s=times[-1], requested_tokens=5, token_times_s=times,
            prompt_tokens=7, completion_tokens=5, cached_tokens=0, status=200,
            finish_reason="length", error=error,
        )
        for i in range(3)
    ]  # fmt: skip


def _folder(folder: Path, *, error: str | None = None, doubts: tuple[str, ...] = ()) -> Path:
    """Of two arms, two loads and two repeats; `error` fails the last block."""
    folder.mkdir()
    samples, blocks = {}, []
    for users in (1, 8):
        for repeat in (0, 1):
            for arm, speed in zip(ARMS, (1.0, 2.0), strict=True):
                last = (users, repeat, arm) == (8, 1, ARMS[1])
                name = f"{arm}-{users}-{repeat}.jsonl"
                samples[name] = _samples(speed, users, error if last else None)
                point = LoadPoint("7/5", concurrency=users)
                blocks.append(Block(arm, point, repeat, summarise(samples[name]), name, 0.0, 0.0))
                writer = SampleWriter(folder / name)
                for sample in samples[name]:
                    writer.write(sample)
                writer.close()
    comparison = ServeComparison(
        rows=rows(blocks, ARMS[0], samples),
        reference=ARMS[0],
        servers={},
        others={},
        calibration=Bias(1.0, 0.5, 0.5),
        blocks=blocks,
        folder=folder,
        other_cpu_share=0.0,
        problems=problems(blocks),
        doubts=list(doubts),
    )
    arms = [Arm(name, url=f"http://host/{i}") for i, name in enumerate(ARMS)]
    write_folder(comparison, arms, LoadPlan(concurrencies=(1, 8), prompts=Path("p.txt")))
    return folder


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


def test_the_report_is_whole_in_one_file(tmp_path: Path) -> None:
    text = (_folder(tmp_path / "run") / "report.html").read_text()
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


def test_the_report_has_the_numbers_and_what_they_rest_on(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "run")
    page = _Page((folder / "report.html").read_text())
    found = read_folder(folder)
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


def test_a_report_can_be_drawn_again(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "run")
    first = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    assert write_report(folder).read_text() == first


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no results folder"):
        read_folder(tmp_path)
    (tmp_path / "serve.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(ValueError, match="is not of this version"):
        read_folder(tmp_path)


def test_one_arm_alone_has_no_ratio(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "run")
    found = read_folder(folder)
    result = found.result | {
        "arms": {"dense": found.result["arms"]["dense"]},
        "rows": [row for row in found.result["rows"] if row["arm"] == "dense"],
    }
    own = [b for b in found.blocks if b.arm == "dense"]
    text = html_report(result, own, found.samples())
    assert text.count("<svg") == 3
