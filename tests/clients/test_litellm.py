"""LiteLLM's SDK."""

from __future__ import annotations

import pytest

from tests.clients.conftest import Client, RunScenario
from tests.clients.expect import check_called, check_text, check_told_results, fits

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]
CLIENT = Client("litellm", "sdk", "litellm_sdk.py")


def test_text(run: RunScenario) -> None:
    found = run("text")
    check_text(found.said, found)


def test_tools(run: RunScenario) -> None:
    found = run("tools")
    check_called(found.said["calls"])
    assert found.said["streamed"] == found.said["calls"]
    assert found.said["answer"]
    check_told_results(found, len(found.said["calls"]))


def test_structured_output(run: RunScenario) -> None:
    fits(run("structured").said)


def test_responses(run: RunScenario) -> None:
    found = run("responses")
    check_text(found.said, found)
    check_called(found.said["calls"])
    assert found.said["answer"]
    check_told_results(found, len(found.said["calls"]))
