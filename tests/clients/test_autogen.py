"""AutoGen."""

from __future__ import annotations

import pytest

from tests.clients.conftest import Client, RunScenario
from tests.clients.expect import REPORT, check_called, check_text, check_told_results

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]
CLIENT = Client("autogen-ext", "agents", "autogen_.py")


def test_text(run: RunScenario) -> None:
    found = run("text")
    check_text(found.said, found)


def test_tools(run: RunScenario) -> None:
    found = run("tools")
    check_called(found.said["calls"])
    assert found.said["streamed"] == found.said["calls"]
    assert all(result.startswith(REPORT) for result in found.said["results"])
    assert found.said["answer"]
    check_told_results(found, len(found.said["calls"]))


def test_assistant_agent(run: RunScenario) -> None:
    said = run("agent").said
    assert said["kinds"][0] == "TextMessage"
    assert said["answer"]
