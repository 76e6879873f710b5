"""smolagents."""

from __future__ import annotations

import pytest

from tests.clients.conftest import Client, RunScenario
from tests.clients.expect import check_text

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]
CLIENT = Client("smolagents", "agents", "smolagents_.py")


def test_text(run: RunScenario) -> None:
    found = run("text")
    check_text(found.said, found)


def test_tool_calling_agent(run: RunScenario) -> None:
    found = run("tools")
    assert found.said["calls"]
    assert found.said["answer"]
