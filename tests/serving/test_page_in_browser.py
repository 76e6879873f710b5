"""The page in headless Chromium: two masks side by side, on a real server with a tiny model.

Needs playwright and Chromium: `make test-browser`. Screenshots of every view go to the folder that
TWOFOUR_SCREENSHOTS names, if it names one.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engines.directory.build import BuildRequest
from engines.registry import run_builder
from tests.engines.conftest import random_mask
from tests.serving.conftest import ServerProcess, StartFake, start_process
from tests.tiny_model import make_tiny_llama

pytestmark = pytest.mark.browser

KEY = "open-sesame"
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    model = make_tiny_llama(folder / "model")
    masks = {
        name: random_mask(model, folder / f"{name}.safetensors", seed=seed, domain=name)
        for seed, name in enumerate(("general", "french"))
    }
    request = BuildRequest(model, "tiny", masks, folder / "engine", with_dense=True)
    run_builder("cpu", request)
    return folder / "engine"


@contextmanager
def serving(directory: Path, *options: str) -> Iterator[ServerProcess]:
    command = [sys.executable, "-m", "twofour.cli", "serve", str(directory), "--port", "0"]
    server = start_process([*command, *options])
    try:
        yield server
    finally:
        code = server.stop()
    assert code == 0
    assert "Traceback" not in "".join(server.log)


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[ServerProcess]:
    with serving(directory, "--api-key", KEY) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    with sync_playwright() as playwright:
        # In containers there is no sandbox to be had; the only page is our own.
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A tab, in which nothing may go wrong unnoticed."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(WAIT_MS)
    tab = context.new_page()
    faults: list[str] = []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
    yield tab
    context.close()
    # Chromium logs answers with an error status by itself; tests look at those they mean.
    assert [fault for fault in faults if not fault.startswith("Failed to load resource")] == []


def picture(page: Any, name: str) -> None:
    if folder := os.environ.get("TWOFOUR_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def open_page(page: Any, server: ServerProcess, fragment: str = "") -> None:
    """Open the page and give it its key."""
    page.goto(f"{server.url}/{fragment}")
    page.get_by_label("Key", exact=True).fill(KEY)
    page.get_by_role("button", name="Use this key").click()
    page.wait_for_selector("#arena .model option >> nth=0", state="attached")


def run(page: Any) -> None:
    page.get_by_role("button", name="Run both").click()
    page.wait_for_selector("#run:not([disabled])")


def test_two_masks_side_by_side(page: Any, server: ServerProcess) -> None:
    open_page(page, server)
    a, b = page.get_by_label("Model of side A"), page.get_by_label("Model of side B")
    names = a.locator("option").all_inner_texts()
    assert names == ["tiny", "tiny:general", "tiny:french", "tiny:dense"]
    assert (a.input_value(), b.input_value()) == ("tiny", "tiny:dense")
    a.select_option("tiny:general")
    b.select_option("tiny:french")
    page.get_by_label("Form").select_option("text")
    page.get_by_label("Most tokens").fill("40")
    bodies: list[dict[str, Any]] = []
    page.on("request", lambda r: bodies.append(r.post_data_json) if r.method == "POST" else None)
    run(page)
    assert sorted(body["model"] for body in bodies) == ["tiny:french", "tiny:general"]
    texts = page.locator(".answer").all_inner_texts()
    assert all(texts)
    assert texts[0] != texts[1], "two masks of random weights answer differently"
    for figure in ("ttft", "speed", "tokens", "logprob"):
        for value in page.locator(f"[data-figure={figure}]").all_inner_texts():
            assert re.match(r"-?\d", value), (figure, value)
    assert "tokens per second, sharing the server" in page.locator("#verdict").inner_text()
    picture(page, "playground")


def test_a_token_shows_what_else_was_likely(page: Any, server: ServerProcess) -> None:
    open_page(page, server)
    page.get_by_label("Form").select_option("text")
    page.get_by_label("Most tokens").fill("12")
    run(page)
    answer = page.locator(".answer").first
    answer.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    side = page.locator(".side").first
    assert side.locator(".piece.chosen").count() == 1
    rows = side.locator(".token dt").all_inner_texts()
    assert len(rows) >= 5
    assert side.locator(".token .taken").count() == 1
    colours = "getComputedStyle(document.querySelector('.piece')).backgroundColor"
    coloured = page.evaluate(colours)
    page.get_by_label("Colour by probability").uncheck()
    assert page.evaluate(colours) != coloured
    picture(page, "token")


def test_answers_one_after_the_other(page: Any, server: ServerProcess) -> None:
    open_page(page, server)
    page.get_by_label("Form").select_option("text")
    page.get_by_label("Order").select_option("apart")
    page.get_by_label("Most tokens").fill("20")
    run(page)
    assert all(page.locator(".answer").all_inner_texts())
    assert re.search("times as fast|equally fast", page.locator("#verdict").inner_text())


def test_escape_stops_both_answers(page: Any, start_fake: StartFake) -> None:
    slow = start_fake(0.05)
    page.goto(slow.url)
    page.wait_for_selector("#arena .model option >> nth=0", state="attached")
    page.get_by_label("Most tokens").fill("150")
    page.get_by_role("button", name="Run both").click()
    page.wait_for_selector(".answer .piece")
    page.keyboard.press("Escape")
    page.wait_for_selector("#run:not([disabled])")
    assert page.locator("#verdict").inner_text() == "Stopped"
    page.get_by_role("tab", name="Status").click()
    page.get_by_role("img", name="running 0, waiting 0").wait_for()


def test_what_the_server_refuses_is_shown(page: Any, server: ServerProcess) -> None:
    open_page(page, server)
    page.get_by_label("Form").select_option("text")
    page.get_by_label("Prompt", exact=True).fill("word " * 5000)
    run(page)
    problems = page.locator(".side .problem").all_inner_texts()
    assert all("the context holds" in problem for problem in problems), problems


def test_a_wrong_key_is_asked_for_again(page: Any, server: ServerProcess) -> None:
    page.goto(server.url)
    page.get_by_label("Key", exact=True).fill("wrong")
    picture(page, "key")
    page.keyboard.press("Enter")
    page.get_by_text("does not take this key").wait_for()
    page.get_by_label("Key", exact=True).fill(KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector("#arena .model option >> nth=0", state="attached")
    stored = page.evaluate("JSON.stringify([Object.values(sessionStorage), localStorage.length])")
    assert stored == f'[["{KEY}"],0]'


def test_the_status_view_is_alive(page: Any, server: ServerProcess) -> None:
    open_page(page, server)
    page.get_by_label("Form").select_option("text")
    page.get_by_label("Most tokens").fill("300")
    page.get_by_role("button", name="Run both").click()
    page.get_by_role("tab", name="Status").click()
    page.get_by_role("img", name=re.compile(r"generated [\d.]+.s")).wait_for()
    rows = page.locator("#masks tr th").all_inner_texts()
    assert rows == ["general", "french", "dense"]
    page.wait_for_timeout(6500)  # several points
    points = page.locator("#charts polyline").first.get_attribute("points")
    assert len(points.split()) >= 3
    assert "cpu" in page.locator("#engine").inner_text()
    picture(page, "status")


def test_tabs_go_by_keyboard(page: Any, server: ServerProcess) -> None:
    open_page(page, server)
    page.get_by_role("tab", name="Playground").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="Status").get_attribute("aria-selected") == "true"
    assert page.get_by_role("tabpanel", name="Status").is_visible()
    assert page.get_by_role("tabpanel", name="Playground").count() == 0
    assert page.evaluate("document.activeElement.id") == "tab-status"


def test_the_other_side_may_be_another_server(
    page: Any, server: ServerProcess, directory: Path
) -> None:
    options = ["--served-model-name", "second", "--allowed-origins", server.url]
    with serving(directory, *options) as other:
        open_page(page, server)
        page.get_by_label("Server of side B").select_option("there")
        page.get_by_label("URL of the other server").nth(1).fill(other.url)
        page.keyboard.press("Tab")
        page.locator(".model").nth(1).locator("option[value=second]").wait_for(state="attached")
        page.get_by_label("Form").select_option("text")
        page.get_by_label("Most tokens").fill("10")
        run(page)
        assert all(page.locator(".answer").all_inner_texts())
        picture(page, "two-servers")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_narrow_screen(page: Any, server: ServerProcess, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 390, "height": 800})
    open_page(page, server)
    for tab in ("Playground", "Status"):
        page.get_by_role("tab", name=tab).click()
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, f"{tab} is {wide} wide"
        picture(page, f"narrow-{tab.lower()}-{scheme}")
