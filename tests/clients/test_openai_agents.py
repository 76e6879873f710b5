"""OpenAI's Agents SDK."""

from __future__ import annotations

import pytest

from tests.clients.answers import read_answer
from tests.clients.conftest import Client, RunScenario
from tests.clients.expect import REPORT, check_called, check_text, check_told_results, fits, tokens

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]
CLIENT = Client("openai-agents", "sdk", "openai_agents_.py")


def test_text(run: RunScenario) -> None:
    found = run("text_chat")
    check_text(found.said, found)


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_function_tool(run: RunScenario, api: str) -> None:
    found = run(f"tools_{api}")
    asked = found.said["asked"]
    check_called([{"name": "get_weather", "arguments": one} for one in asked])
    assert found.said["asked_streamed"] == asked
    assert found.said["outputs"] == [REPORT] * len(asked)
    assert found.said["answer"]
    assert found.said["streamed"] == found.said["answer"]
    check_told_results(found, len(asked))
    told = [read_answer(one).usage for one in found.answered if not one.streamed]
    if api == "chat":
        assert tokens(found.said["usage"]) == tuple(map(sum, zip(*told, strict=True)))


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_output_type(run: RunScenario, api: str) -> None:
    fits(run(f"output_{api}").said)
