"""Constraints are checked in full when they are compiled, and compiled once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import llguidance
import numpy as np
import pytest

from engines.base import Engine, GenerationRequest
from engines.cpu.build import build
from engines.decoding import structured_output as structured
from engines.decoding.structured_output import Constraint, ConstraintCompiler
from engines.directory.build import BuildRequest
from engines.errors import InvalidRequestError
from engines.reference.build import build as build_reference
from engines.registry import open_engine
from engines.sampling import SamplingParams, StructuredOutput
from engines.text import TextCodec

WRITTEN = '{"a": [1, 2], "b": {}}'
GROWS = StructuredOutput("regex", "[ab]*a[ab]{12}")
"""Its states multiply with every token."""


@pytest.fixture
def compiler(tiny_model: Path) -> ConstraintCompiler:
    return ConstraintCompiler(TextCodec(tiny_model), 300)


def schema(value: Any) -> StructuredOutput:
    return StructuredOutput("json_schema", json.dumps(value))


@pytest.mark.parametrize(
    "spec",
    [
        schema({"not": {"type": "string"}}),
        schema({"uniqueItems": True}),
        schema({"type": "string", "format": "int32"}),
        schema({"type": "integer", "minimum": 3, "maximum": 2}),
        schema({"$ref": "#"}),
        schema({"$ref": "http://127.0.0.1:9/schema"}),
        schema({"enum": []}),
        schema({"enum": ["half \ud83d"]}),
        schema({"type": "integer", "multipleOf": 999_983}),
        schema({"anyOf": [{"type": "integer", "multipleOf": 9000 + i} for i in range(200)]}),
        schema(7),
        StructuredOutput("json_schema", "{"),
        StructuredOutput("json_schema", '{"minimum": NaN}'),
        StructuredOutput("json_schema", '{"items": ' * 5000 + "{}" + "}" * 5000),
        StructuredOutput("regex", "["),
        StructuredOutput("regex", "(?=a)b"),
        StructuredOutput("regex", "(" * 3000 + ")" * 3000),
        StructuredOutput("regex", "a" * 65_537),
        StructuredOutput("choice", "[]"),
        StructuredOutput("choice", '["a", 1]'),
        StructuredOutput("choice", "{"),
    ],
    ids=lambda spec: f"{spec.kind} {spec.value[:40]!a}",
)
def test_what_cannot_be_compiled_is_an_invalid_request(
    compiler: ConstraintCompiler, spec: StructuredOutput
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        compiler.compile(spec)
    assert caught.value.param == "structured"
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_keywords_that_say_nothing_are_compiled(compiler: ConstraintCompiler) -> None:
    idle = {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": False, "not": False}
    plain = {"type": "array", "items": {"enum": [1, 2]}}
    masks = [compiler.compile(schema(s)).allowed(300) for s in (idle, plain)]
    assert np.array_equal(*masks)


def test_a_constraint_is_compiled_once_and_starts_afresh(
    compiler: ConstraintCompiler, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    compiled: list[str] = []
    grammar_from = llguidance.grammar_from

    def recording(kind: str, source: str) -> str:
        compiled.append(source)
        return grammar_from(kind, source)

    monkeypatch.setattr(structured.llguidance, "grammar_from", recording)
    spec = StructuredOutput("choice", '["river", "mill"]')
    first = compiler.compile(spec)
    start = first.allowed(300)
    token = TextCodec(tiny_model).tokenizer.token_to_id("r")
    first.push(token)
    assert not np.array_equal(first.allowed(300), start)
    assert np.array_equal(compiler.compile(spec).allowed(300), start)
    assert len(compiled) == 1


@pytest.fixture(params=["cpu", "reference"])
async def engine(
    request: pytest.FixtureRequest,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Engine]:
    monkeypatch.setattr(structured, "_MAX_LEXER_STATES", 20)
    builder = build if request.param == "cpu" else build_reference
    builder(BuildRequest(tiny_model, "tiny", {}, tmp_path / "engine"))
    engine = open_engine(tmp_path / "engine")
    yield engine
    await engine.close()


async def test_a_constraint_that_grows_too_heavy_is_the_requests_own_fault(engine: Engine) -> None:
    sampling = SamplingParams(seed=1, temperature=5.0, max_tokens=40, structured=GROWS)
    request = GenerationRequest("r", (5, 6, 7), sampling)
    chunks = [chunk async for chunk in engine.generate(request)]
    assert chunks[-1].finish_reason == "error"
    assert chunks[-1].invalid
    assert "cannot go on: lexer error: too many states" in (chunks[-1].error or "")
    assert engine.constraints is not None


@pytest.mark.parametrize("kind", ["json_schema", "json_object"])
def test_json_is_on_one_line_unless_that_is_asked_for(tiny_model: Path, kind: Any) -> None:
    codec = TextCodec(tiny_model)
    compiler = ConstraintCompiler(codec, codec.vocab_size)
    source = '{"properties": {"a": {"type": "array"}}}' if kind == "json_schema" else ""
    for any_whitespace in (False, True):
        spec = StructuredOutput(kind, source, any_whitespace)
        assert _accepts(compiler.compile(spec), codec, WRITTEN)
        for loose in (WRITTEN.replace(" ", ""), WRITTEN.replace(" ", "\n"), "{\n\n"):
            assert _accepts(compiler.compile(spec), codec, loose) == any_whitespace, loose


def test_a_schema_may_say_itself_how_its_json_is_laid_out(tiny_model: Path) -> None:
    codec = TextCodec(tiny_model)
    schema = {"type": "object", "x-guidance": {"key_separator": ":", "item_separator": ","}}
    spec = StructuredOutput("json_schema", json.dumps(schema))
    constraint = ConstraintCompiler(codec, codec.vocab_size).compile(spec)
    assert _accepts(constraint, codec, WRITTEN.replace(" ", ""))


def _accepts(constraint: Constraint, codec: TextCodec, text: str) -> bool:
    """Whether the text may be written, at least as the beginning of an answer."""
    for token in codec.encode(text):
        if not constraint.allowed(codec.vocab_size)[token]:
            return False
        constraint.push(token)
    return True
