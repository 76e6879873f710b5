"""Keywords that say nothing are left out of schemas, and no others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engines.decoding.json_schema import MAX_DEPTH, MAX_MULTIPLE, ONE_LINE, prepared_schema
from engines.errors import InvalidRequestError


def prepared(schema: Any, *, any_whitespace: bool = True) -> Any:
    return json.loads(prepared_schema(json.dumps(schema), any_whitespace=any_whitespace))


@pytest.mark.parametrize(
    ("schema", "options"),
    [
        (True, ONE_LINE),
        ({"type": "object"}, ONE_LINE),
        ({"x-guidance": {"item_separator": ","}}, {**ONE_LINE, "item_separator": ","}),
        ({"x-guidance": 3}, 3),
    ],
)
def test_one_line_unless_the_schema_says_otherwise(schema: Any, options: Any) -> None:
    given = schema if isinstance(schema, dict) else {}
    assert prepared(schema, any_whitespace=False) == {**given, "x-guidance": options}
    assert prepared(False, any_whitespace=False) is False


@pytest.mark.parametrize(
    "idle",
    [
        {"uniqueItems": False},
        {"not": False},
        {"propertyNames": True},
        {"propertyNames": {}},
        {"propertyNames": {"not": False}},
        {"unevaluatedItems": True},
        {"unevaluatedProperties": {}},
        {"dependencies": {}},
        {"dependentRequired": {}},
        {"dependentRequired": {"a": []}},
        {"dependentSchemas": {}},
        {"if": {"type": "string"}},
        {"if": {"type": "string"}, "then": True, "else": {}},
        {"then": {"type": "string"}},
        {"else": {"type": "string"}},
        {"minContains": 2},
        {"maxContains": 2},
        {"contains": {"type": "string"}, "minContains": 0},
    ],
)
def test_keywords_that_say_nothing(idle: dict[str, Any]) -> None:
    base = {"type": "array", "items": {"type": "integer"}}
    assert prepared({**base, **idle}) == base
    for path in (
        lambda s: {"properties": {"a": s}},
        lambda s: {"patternProperties": {"a": s}},
        lambda s: {"$defs": {"a": s}, "definitions": {"b": s}},
        lambda s: {"items": s, "additionalProperties": s},
        lambda s: {"items": [s, s], "additionalItems": s},
        lambda s: {"prefixItems": [s], "allOf": [s], "anyOf": [s, True], "oneOf": [s]},
        lambda s: {"if": s, "then": s, "else": s, "not": s},
        lambda s: {"contains": s, "propertyNames": s, "unevaluatedProperties": s},
        lambda s: {"dependencies": {"a": s, "b": ["c"]}, "dependentSchemas": {"a": s}},
    ):
        assert prepared(path({**base, **idle})) == path(base)


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {"uniqueItems": True},
        {"uniqueItems": 0},
        {"not": {}},
        {"not": True},
        {"propertyNames": False},
        {"unevaluatedProperties": False},
        {"dependentRequired": {"a": ["b"]}},
        {"if": {"type": "string"}, "then": {"minLength": 1}},
        {"if": {"type": "string"}, "else": False},
        {"contains": {"type": "string"}},
        {"contains": {"type": "string"}, "minContains": 0, "maxContains": 2},
        # These are names and values, not keywords.
        {"properties": {"uniqueItems": False, "not": False}},
        {"enum": [{"uniqueItems": False}], "const": {"not": False}},
        {"default": {"if": {}}, "examples": [{"uniqueItems": False}], "x": {"not": False}},
        {"required": ["uniqueItems"], "dependencies": {"not": ["uniqueItems"]}},
    ],
)
def test_what_says_something_stays(schema: Any) -> None:
    assert prepared(schema) == schema


@pytest.mark.parametrize(
    ("schema", "needed"),
    [
        ({"multipleOf": 10_000}, None),
        ({"multipleOf": 0.9973}, None),
        ({"multipleOf": 1e4}, None),
        ({"multipleOf": 0.0001}, None),
        ({"multipleOf": "x"}, None),
        ({"multipleOf": True}, None),
        ({"multipleOf": -20_000}, None),
        ({"properties": {str(i): {"multipleOf": 97} for i in range(100)}}, None),
        ({"multipleOf": 10_001}, 10_001),
        ({"multipleOf": 1e5}, 100_000),
        ({"multipleOf": 0.10001}, 10_001),
        ({"allOf": [{"multipleOf": 97}, {"multipleOf": 89}, {"multipleOf": 101}]}, 97 * 89 * 101),
        ({"properties": {str(i): {"multipleOf": 97} for i in range(104)}}, 104 * 97),
        ({"$ref": "#/x/y", "x": {"y": {"multipleOf": 20_000}}}, 20_000),
        ({"multipleOf": 1e300}, 10**18),
    ],
)
def test_multiples_that_take_too_many_states(schema: Any, needed: int | None) -> None:
    if needed is None:
        assert prepared(schema) == schema
        return
    message = f"needs {needed} remainders .* at most {MAX_MULTIPLE} can be compiled"
    with pytest.raises(InvalidRequestError, match=message):
        prepared(schema)


def nested(levels: int) -> str:
    return '{"items": ' * levels + "{}" + "}" * levels


def test_deep_schemas() -> None:
    assert prepared_schema(nested(MAX_DEPTH), any_whitespace=True) == nested(MAX_DEPTH)
    for levels in (MAX_DEPTH + 1, 900, 100_000):
        with pytest.raises(InvalidRequestError, match="nested") as caught:
            prepared_schema(nested(levels))
        assert caught.value.param == "structured"


@pytest.mark.parametrize("source", ["", "{", "nothing", '{"a": 1} x'])
def test_what_is_no_json(source: str) -> None:
    with pytest.raises(InvalidRequestError, match="is not JSON"):
        prepared_schema(source)
