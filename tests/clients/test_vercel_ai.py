"""Vercel's AI SDK: `openai(model)`, which is the Responses API, and `openai.chat(model)`."""

from __future__ import annotations

import pytest

from tests.clients.conftest import Client, RunScenario
from tests.clients.expect import REPORT, check_called, check_text, check_told_results, fits

pytestmark = [
    pytest.mark.clients,
    pytest.mark.timeout(900),
    pytest.mark.parametrize("api", ["responses", "chat"]),
]
CLIENT = Client("ai", "npm", "vercel_ai.mjs")


def test_text(run: RunScenario, api: str) -> None:
    found = run(f"text_{api}")
    check_text(found.said, found)


def test_tools(run: RunScenario, api: str) -> None:
    found = run(f"calls_{api}")
    whole = found.said["whole"]
    assert found.said["streamed"] == whole
    check_called(whole["calls"])
    assert whole["results"] == [REPORT] * len(whole["calls"])
    assert whole["finish"][0] == "tool-calls"
    assert whole["answer"] or whole["more"]
    check_told_results(found, len(whole["calls"]))


def test_structured_output(run: RunScenario, api: str) -> None:
    said = run(f"structured_{api}").said
    fits(said["river"])
    assert said["streamed"] == said["river"]
