"""Pydantic AI."""

from __future__ import annotations

import pytest

from tests.clients.answers import read_answer
from tests.clients.conftest import Client, RunScenario
from tests.clients.expect import REPORT, check_called, check_text, check_told_results, fits, tokens

pytestmark = [
    pytest.mark.clients,
    pytest.mark.timeout(900),
    pytest.mark.parametrize("api", ["chat", "responses"]),
]
CLIENT = Client("pydantic-ai-slim", "sdk", "pydantic_ai_.py")


def scenario(name: str, api: str) -> str:
    return name if api == "chat" else f"{api}_{name}"


def test_text(run: RunScenario, api: str) -> None:
    found = run(scenario("text", api))
    check_text(found.said, found)


def test_output_types(run: RunScenario, api: str) -> None:
    said = run(scenario("output", api)).said
    assert set(said) == {"tool", "native"}
    for found in said.values():
        fits(found["river"])
        assert found["streamed"] == found["river"]


def test_tools(run: RunScenario, api: str) -> None:
    found = run(scenario("tools", api))
    asked = found.said["asked"]
    check_called([{"name": "get_weather", "arguments": one} for one in asked])
    assert found.said["returned"].count(REPORT) == len(asked)
    fits(found.said["river"])
    check_told_results(found, len(asked))
    told = [read_answer(one).usage for one in found.answered]
    assert tokens(found.said["usage"]) == tuple(map(sum, zip(*told, strict=True)))
