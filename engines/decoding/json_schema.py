"""JSON schemas on their way to a compiler that refuses keywords it does not know.

Keywords that say nothing are left out: generators of schemas write them, and no answer depends on
them. The meaning of each is that of JSON Schema 2020-12 (https://json-schema.org/draft/2020-12).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from llguidance import LLMatcher

from engines.errors import InvalidRequestError

MAX_DEPTH = 100
"""Most levels of a schema; llguidance's own JSON reader stops at 128."""

MAX_MULTIPLE = 10_000
"""llguidance builds a state for each remainder: of 1,000,000 in 40 seconds and 300 MB."""

_ONE = frozenset(
    [
        "additionalItems",
        "additionalProperties",
        "contains",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    ]
)
_LISTS = frozenset(["allOf", "anyOf", "items", "oneOf", "prefixItems"])
_NAMED = frozenset(
    ["$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"]
)


def _allows_all(value: Any) -> bool:
    return value is True or value == {}


_SAYS_NOTHING: Mapping[str, Callable[[Any], bool]] = {
    "uniqueItems": lambda value: value is False,
    "not": lambda value: value is False,
    "propertyNames": _allows_all,
    "unevaluatedItems": _allows_all,
    "unevaluatedProperties": _allows_all,
    "dependencies": lambda value: value == {},
    "dependentRequired": lambda value: isinstance(value, dict) and not any(value.values()),
    "dependentSchemas": lambda value: value == {},
}


ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""llguidance's options for JSON as Python's `json.dumps` lays it out."""


def prepared_schema(source: str, *, any_whitespace: bool = False) -> str:
    """A schema without the keywords that say nothing.

    Args:
        source: the schema as JSON text.
        any_whitespace: the JSON may be laid out in any way, instead of on one line.

    Returns:
        JSON text of a schema that the same values satisfy.

    Raises:
        InvalidRequestError: it is not JSON, or larger than can be compiled in bounded time.
    """
    try:
        schema = json.loads(source)
        cleaned = _cleaned(schema, 0)
        text = json.dumps(cleaned if any_whitespace else _on_one_line(cleaned))
    except json.JSONDecodeError as error:
        raise _refused(f"is not JSON: {error}") from error
    except RecursionError as error:
        raise _refused("is nested too deeply") from error
    _check_multiples(schema)
    return text


def compiles(source: str) -> bool:
    """Whether an answer can be held to a schema, but for limits that show in the first step."""
    try:
        grammar = LLMatcher.grammar_from_json_schema(prepared_schema(source))
    except InvalidRequestError:
        return False
    return not LLMatcher.validate_grammar(grammar)


def _on_one_line(schema: Any) -> Any:
    """The schema with llguidance's options; what it says itself about layout holds."""
    if schema is True:
        return {"x-guidance": ONE_LINE}
    if not isinstance(schema, dict):
        return schema
    given = schema.get("x-guidance", {})
    return {**schema, "x-guidance": ONE_LINE | given if isinstance(given, dict) else given}


def _cleaned(schema: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise _refused(f"is nested more than {MAX_DEPTH} levels deep")
    if not isinstance(schema, dict):
        return schema
    cleaned = {
        keyword: _cleaned_value(keyword, value, depth + 1) for keyword, value in schema.items()
    }
    kept = {
        keyword: value
        for keyword, value in cleaned.items()
        if not (keyword in _SAYS_NOTHING and _SAYS_NOTHING[keyword](value))
    }
    for keyword in _idle_companions(kept):
        kept.pop(keyword, None)
    return kept


def _cleaned_value(keyword: str, value: Any, depth: int) -> Any:
    """The value of a keyword, cleaned where it is a schema or holds some; others are data."""
    if keyword in _LISTS and isinstance(value, list):
        return [_cleaned(item, depth) for item in value]
    if keyword in _NAMED and isinstance(value, dict):
        return {name: _cleaned(item, depth) for name, item in value.items()}
    return _cleaned(value, depth) if keyword in _ONE else value


def _idle_companions(schema: dict[str, Any]) -> Iterator[str]:
    """Keywords that say nothing because of what stands beside them."""
    branches = [schema.get("then", True), schema.get("else", True)]
    if "if" not in schema or all(map(_allows_all, branches)):
        yield from ("if", "then", "else")
    if "contains" not in schema or (schema.get("minContains") == 0 and "maxContains" not in schema):
        yield from ("contains", "minContains", "maxContains")


def _check_multiples(schema: Any) -> None:
    # Wherever they stand: a reference can make a schema of any part.
    multiples = [_states(value) for value in _values_of("multipleOf", schema)]
    needed = max(sum(multiples), math.lcm(*multiples))
    if needed > MAX_MULTIPLE:
        raise _refused(
            f"needs {min(needed, 10**18)} remainders for its multipleOf values, at most"
            f" {MAX_MULTIPLE} can be compiled; use smaller ones"
        )


def _values_of(keyword: str, schema: Any) -> Iterator[Any]:
    rest = [schema]
    while rest:
        value = rest.pop()
        if isinstance(value, list):
            rest += value
        elif isinstance(value, dict):
            rest += value.values()
            if keyword in value:
                yield value[keyword]


def _states(multiple: Any) -> int:
    """How many remainders there are: of 0.25 as of 25. The compiler refuses what is no number."""
    if isinstance(multiple, bool) or not isinstance(multiple, int | float) or multiple <= 0:
        return 1
    if not math.isfinite(multiple):
        return 1
    _, digits, exponent = Decimal(repr(multiple)).normalize().as_tuple()
    zeros = "0" * max(int(exponent), 0)
    return int("".join(map(str, digits)) + zeros)


def _refused(reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"the JSON schema {reason}", param="structured")
