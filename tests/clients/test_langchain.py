"""LangChain's ChatOpenAI."""

from __future__ import annotations

import pytest

from tests.clients.conftest import Client, RunScenario
from tests.clients.expect import REPORT, check_called, check_text, check_told_results, fits

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]
CLIENT = Client("langchain-openai", "sdk", "langchain_openai_.py")


@pytest.mark.parametrize("scenario", ["text", "responses_text"])
def test_text(run: RunScenario, scenario: str) -> None:
    found = run(scenario)
    check_text(found.said, found)


@pytest.mark.parametrize("scenario", ["tools", "responses_tools"])
def test_bind_tools(run: RunScenario, scenario: str) -> None:
    found = run(scenario)
    calls = found.said["calls"]
    check_called(calls)
    assert found.said["streamed"] == calls
    assert all(result.startswith(REPORT) for result in found.said["results"])
    assert found.said["answer"] or found.said["more"]
    check_told_results(found, len(calls))


def test_structured_output(run: RunScenario) -> None:
    said = run("structured").said
    assert set(said) == {"json_schema", "function_calling"}
    for found in said.values():
        fits(found)
