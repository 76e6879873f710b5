"""The page at `/`: served whole, from this server alone."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from serving.api.page import page_files
from tests.serving.conftest import App, open_app

FILES = sorted(page_files())


class Links(HTMLParser):
    """What a page loads, and what it does by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline: list[str] = []
        self.ids: list[str] = []
        self.pointers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.found += [given[name] or "" for name in ("src", "href") if name in given]
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        if tag in ("style",) or (tag == "script" and "src" not in given):
            self.inline.append(tag)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        for name in ("for", "aria-controls", "aria-labelledby", "aria-describedby"):
            if given.get(name):
                self.pointers.append(str(given[name]))


def links() -> Links:
    parser = Links()
    parser.feed(page_files()["index.html"].decode())
    return parser


async def test_the_page_and_its_files_are_served_without_a_key(tmp_path: Path) -> None:
    async with open_app(tmp_path, api_key=("key",)) as app:
        page = await app.client.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"].startswith("text/html")
        for link in links().found:
            if not link.startswith("#"):
                assert (await app.client.get(f"/{link}")).status_code == 200, link
        kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
        for name in FILES:
            answer = await app.client.get(f"/page/{name}")
            assert answer.content == page_files()[name]
            kind = kinds.get(name.rpartition(".")[2], "text/html")
            assert answer.headers["content-type"].startswith(kind)
        for name in ("nothing.js", "..%2fapp.py", "__init__.py"):
            missing = await app.client.get(f"/page/{name}")
            assert missing.status_code == 404
            assert missing.json()["error"]["code"] == "not_found"


async def test_the_browser_is_told_to_load_nothing_else(app: App) -> None:
    for path in ("/", "/page/main.js"):
        headers = (await app.client.get(path)).headers
        policy = dict(
            part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", FILES)
def test_no_file_refers_to_another_host(name: str) -> None:
    text = page_files()[name].decode()
    urls = re.findall(
        r"""(?:[a-z]+:)?//[a-z0-9][^\s"'`)]*""", text.replace("// ", ""), re.IGNORECASE
    )
    known = {"http://www.w3.org/2000/svg", "http://127.0.0.1:8001"}  # a name, and an example
    assert set(urls) <= known
    assert "@import" not in text
    assert "url(" not in text
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "document.write"):
        assert sink not in text, "what a model writes must stay text"


def test_the_page_does_nothing_that_its_policy_forbids() -> None:
    assert links().inline == []
    assert not any(re.match("[a-z]+:|//", link) for link in links().found)


def test_labels_point_to_what_is_there() -> None:
    found = links()
    assert len(set(found.ids)) == len(found.ids)
    assert set(found.pointers) <= set(found.ids)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".js")])
def test_scripts_import_and_ask_for_what_is_there(name: str) -> None:
    text = page_files()[name].decode()
    for imported in re.findall(r'from "\./([^"]+)"', text):
        assert imported in FILES
    for wanted in re.findall(r'(?:querySelector\("#|field\(")([a-z-]+)"\)', text):
        assert wanted in links().ids, wanted


async def test_the_page_can_be_switched_off(tmp_path: Path) -> None:
    async with open_app(tmp_path, web_page=False) as app:
        for path in ("/", "/page/main.js"):
            assert (await app.client.get(path)).status_code == 404
