"""What becomes of vLLM's errors, with classes in the places where vLLM has its own."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from engines.errors import EngineDeadError, InvalidRequestError
from engines.vllm_plugin.errors import as_engine_error


class ClientError(Exception):
    pass


class ValidationError(ValueError):
    parameter = "min_tokens"


class DeadError(Exception):
    pass


@pytest.fixture(autouse=True)
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = {
        "vllm.exceptions": {"VLLMClientError": ClientError, "VLLMValidationError": ValidationError},
        "vllm.v1.engine.exceptions": {"EngineDeadError": DeadError},
    }
    for name in ("vllm", "vllm.exceptions", "vllm.v1", "vllm.v1.engine"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name, members in classes.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)


def test_what_vllm_refuses_is_the_requests_fault() -> None:
    refused = as_engine_error(ValidationError("min_tokens is too large"))
    assert isinstance(refused, InvalidRequestError)
    assert (str(refused), refused.param) == ("min_tokens is too large", "min_tokens")
    assert isinstance(as_engine_error(ClientError("no")), InvalidRequestError)


def test_other_value_errors_are_not() -> None:
    for error in (ValueError("shape mismatch in a kernel"), KeyError("x"), RuntimeError("y")):
        assert as_engine_error(error) is error
    ours = InvalidRequestError("already ours", "seed")
    assert as_engine_error(ours) is ours


def test_a_dead_engine_is_dead() -> None:
    assert isinstance(as_engine_error(DeadError()), EngineDeadError)
