"""OpenAI's client for JavaScript."""

from __future__ import annotations

import json

import pytest

from tests.clients.conftest import Client, RunScenario
from tests.clients.expect import REPORT, check_called, check_text, check_told_results, fits

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]
CLIENT = Client("openai", "npm", "openai.mjs")


def test_chat(run: RunScenario) -> None:
    found = run("chat")
    check_text(found.said, found)


def test_tools_and_its_runner(run: RunScenario) -> None:
    found = run("tools")
    check_called(found.said["calls"])
    assert found.said["reports"] == [json.loads(c["arguments"]) for c in found.said["calls"]]
    assert set(found.said["results"]) == {REPORT}
    assert found.said["streamed"][0] == found.said["reports"][0]
    check_told_results(found, len(found.said["calls"]))
    assert found.said["answer"]["content"] or found.said["answer"]["tool_calls"]


def test_structured_output(run: RunScenario) -> None:
    said = run("structured").said
    fits(said["river"])
    assert said["streamed"] == said["river"]


def test_responses(run: RunScenario) -> None:
    found = run("responses")
    check_text(found.said, found)
    fits(found.said["river"])
