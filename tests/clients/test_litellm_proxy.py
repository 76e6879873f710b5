"""LiteLLM's proxy in front of the server."""

from __future__ import annotations

import pytest

from tests.clients.conftest import Client, RunScenario
from tests.clients.expect import check_called, check_text, check_told_results

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]
CLIENT = Client("litellm", "litellm-proxy", "litellm_proxy.py")


def test_proxy(run: RunScenario) -> None:
    found = run("everything")
    said = found.said
    check_text(said["text"], found)
    check_text(said["responses"], found)
    check_called(said["tools"]["calls"])
    assert said["tools"]["streamed"] == said["tools"]["calls"]
    assert said["tools"]["answer"]
    check_told_results(found, len(said["tools"]["calls"]))
