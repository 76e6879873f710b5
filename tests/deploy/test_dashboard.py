"""The Grafana dashboard names only metrics and labels that the server has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import open_app
from tests.serving.fake_engine import FakeEngine
from tests.serving.requests import COMPLETION, post

FILE = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboard.json"
FROM_PROMETHEUS = {"instance", "le"}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def expressions() -> list[str]:
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return panels + [entry["definition"] for entry in dashboard()["templating"]["list"]]


async def exposed(tmp_path: Path) -> dict[str, set[str]]:
    """Labels of every sample, by name, of a server that has answered."""
    engine = FakeEngine(tmp_path, dense_bytes=1, mask_budget=100)
    async with open_app(tmp_path, engine) as app:
        assert (await post(app, "/v1/completions", {**COMPLETION, "max_tokens": 3}))[0] == 200
        text = (await app.client.get("/metrics")).text
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^([\w:]+)(?:\{(.*)\})? ", text, re.MULTILINE):
        found.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    return found


async def test_every_metric_and_label_is_there(tmp_path: Path) -> None:
    known = await exposed(tmp_path)
    used: set[str] = set()
    for expression in expressions():
        names = re.findall(r"twofour:\w+", expression)
        assert names, expression
        assert set(names) <= known.keys(), expression
        used.update(names)
        labels = set().union(*(known[name] for name in names)) | FROM_PROMETHEUS
        grouped = re.findall(r"by \(([^)]*)\)", expression)
        selected = re.findall(r"(\w+)=~?\"", expression)
        wanted = {label.strip() for group in grouped for label in group.split(",")} | set(selected)
        assert wanted <= labels, expression
    assert len(used) > 25


def test_panels_are_named_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["title"] for panel in panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("name", ["num_requests_waiting", "mask_evictions_total", "engine_up"])
def test_what_operators_look_for_is_on_it(name: str) -> None:
    assert any(f"twofour:{name}" in expression for expression in expressions())
