"""instructor."""

from __future__ import annotations

import pytest

from tests.clients.answers import read_answer
from tests.clients.conftest import Client, RunScenario
from tests.clients.expect import fits, tokens

pytestmark = [pytest.mark.clients, pytest.mark.timeout(900)]
CLIENT = Client("instructor", "agents", "instructor_.py")
NOTE = {"type": "object", "properties": {"text": {"type": "string"}}}


@pytest.mark.parametrize("mode", ["tools", "json", "json_schema"])
def test_objects(run: RunScenario, mode: str) -> None:
    found = run(mode)
    if mode == "json":
        fits(found.said["object"], NOTE)
    else:
        fits(found.said["object"])
    assert found.said["streamed"] == found.said["object"]
    assert tokens(found.said["usage"]) == read_answer(found.answered[0]).usage
