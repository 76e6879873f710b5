"""LlamaIndex."""

from __future__ import annotations

import pytest

from tests.clients.conftest import Client, RunScenario
from tests.clients.expect import REPORT, check_called, check_text, check_told_results, fits

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]
CLIENT = Client("llama-index-llms-openai-like", "agents", "llama_index_.py")


def test_text(run: RunScenario) -> None:
    found = run("text")
    check_text(found.said, found)
    assert found.said["continued"]
    assert found.said["continued_streamed"] == found.said["continued"]


def test_function_calling(run: RunScenario) -> None:
    found = run("tools")
    check_called(found.said["calls"])
    assert found.said["streamed"] == found.said["calls"]
    assert all(result.startswith(REPORT) for result in found.said["results"])
    check_told_results(found, len(found.said["calls"]))


def test_structured_output(run: RunScenario) -> None:
    said = run("structured").said
    assert set(said) == {"schema", "function"}
    for found in said.values():
        fits(found)
