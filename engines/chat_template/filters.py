"""jinja2's filters, tests and functions, each counting what it is about to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from functools import wraps
from typing import Any

from jinja2.filters import make_attrgetter
from jinja2.utils import generate_lorem_ipsum

from engines.chat_template.render_budget import (
    MAX_INTEGER_BITS,
    RenderingBudget,
    TemplateLimitError,
    charge_join,
    charge_operator,
    charge_printf,
    charge_replace,
    charge_squared,
    charge_widths,
    running_budget,
)

# Look at a value without walking through it.
_FREE_FILTERS = {"attr", "count", "d", "default", "first", "items", "last", "length", "random"}
# Pass a value's members on.
_MEMBER_FILTERS = {"list", "map", "reject", "rejectattr", "reverse", "select", "selectattr"}
# Compare or join members, which have to be there to be counted.
_DRAWING_FILTERS = {"groupby", "join", "max", "min", "sort", "sum", "unique"}
_SQUARED_FILTERS = {"pprint", "striptags", "urlize", "wordwrap", "xmlattr"}
_FREE_TESTS = {
    "boolean",
    "callable",
    "defined",
    "escaped",
    "false",
    "filter",
    "float",
    "integer",
    "iterable",
    "mapping",
    "none",
    "number",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
}
_REMAINDER_TESTS = {"divisibleby", "even", "odd"}
_WORD_CHARACTERS = 16  # of lipsum: a word, its comma, its markup

Charge = Callable[[RenderingBudget, Sequence[Any], Mapping[str, Any]], None]


def counted_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter `function`, counted; an iterator that it returns counts its items."""
    passed = 1 if hasattr(function, "jinja_pass_arg") else 0
    charge = _charge_of(name)

    @wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        budget = running_budget()
        budget.step()
        own, values = args[:passed], list(args[passed:])
        if name in _DRAWING_FILTERS and values and isinstance(values[0], (Iterator, range)):
            values[0] = list(values[0])
        if name == "join":
            values, kwargs = _join_arguments(own[0].environment, values, kwargs)
        charge(budget, values, kwargs)
        result = function(*own, *values, **kwargs)
        if isinstance(result, Iterator):
            return budget.counted(result)
        budget.made(result)
        return result

    return counted


def counted_test(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The test `function`, counted if its work depends on the size of what it is given."""
    if name in _FREE_TESTS:
        return function

    @wraps(function)
    def counted(value: Any, *args: Any) -> Any:
        budget = running_budget()
        budget.text_of(value)
        if name in _REMAINDER_TESTS:
            charge_operator(budget, "%", value, args)
        for argument in args:
            (budget.search if name == "in" else budget.read)(argument)
        return function(value, *args)

    return counted


def counted_lipsum(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:
    """jinja2's `lipsum`, counted."""
    running_budget().write(n * max * _WORD_CHARACTERS)
    return generate_lorem_ipsum(n, html, min, max)


def _charge_of(name: str) -> Charge:
    if name in _FREE_FILTERS:
        return _charge_nothing
    if name in _MEMBER_FILTERS:
        return _charge_members
    if name in _SQUARED_FILTERS:
        return _charge_square
    return _CHARGES.get(name, _charge_arguments)


def _argument(
    values: Sequence[Any], kwargs: Mapping[str, Any], place: int, name: str, default: Any
) -> Any:
    return values[place] if len(values) > place else kwargs.get(name, default)


def _charge_nothing(
    budget: RenderingBudget, values: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    pass


def _charge_members(
    budget: RenderingBudget, values: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    budget.members(values[0])


def _charge_arguments(
    budget: RenderingBudget, values: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    for value in (*values, *kwargs.values()):
        budget.text_of(value)


def _charge_square(
    budget: RenderingBudget, values: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    charge_squared(budget, values[0])
    inserted = sum(map(budget.read, (*values[1:], *kwargs.values())))
    budget.write(budget.read(values[0]) * inserted)


def _charge_width(
    budget: RenderingBudget, values: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    _charge_arguments(budget, values, kwargs)
    charge_widths(budget, [*values[1:], *kwargs.values()])


def _charge_pieces(
    budget: RenderingBudget, values: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """`batch` fills its last list up, `slice` makes as many lists as it is told."""
    budget.members(values[0])
    budget.step(sum(abs(v) for v in (*values[1:], *kwargs.values()) if isinstance(v, int)))


def _charge_indent(
    budget: RenderingBudget, values: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    budget.read(values[0])
    width = _argument(values, kwargs, 1, "width", 4)
    lines = len(values[0].splitlines()) + 1 if isinstance(values[0], str) else 1
    budget.write(lines * (width if isinstance(width, int) else budget.read(width)))


def _charge_round(
    budget: RenderingBudget, values: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    precision = _argument(values, kwargs, 1, "precision", 0)
    if isinstance(precision, int) and abs(precision) * 4 > MAX_INTEGER_BITS:
        raise TemplateLimitError(f"it rounds to {precision} places")
    charge_operator(budget, "*", values[0], 10 ** max(int(precision), 0))


def _charge_format(
    budget: RenderingBudget, values: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    if isinstance(values[0], str):
        charge_printf(budget, values[0], dict(kwargs) or tuple(values[1:]))


def _charge_replacement(
    budget: RenderingBudget, values: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    old = _argument(values, kwargs, 1, "old", "")
    charge_replace(budget, values[0], old, _argument(values, kwargs, 2, "new", ""))


def _charge_joining(
    budget: RenderingBudget, values: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    charge_join(budget, values[0], _argument(values, kwargs, 1, "d", ""))


def _join_arguments(
    environment: Any, values: list[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Look attributes up first, so that what is joined can be counted."""
    attribute = _argument(values, kwargs, 2, "attribute", None)
    if attribute is None:
        return values, dict(kwargs)
    members = list(map(make_attrgetter(environment, attribute), values[0]))
    return [members, _argument(values, kwargs, 1, "d", "")], {}


def _charge_sum(budget: RenderingBudget, values: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    size = budget.read(values[0])
    start = _argument(values, kwargs, 2, "start", 0)
    if not isinstance(start, (int, float)) and isinstance(values[0], Sized):
        budget.step(len(values[0]) * size)  # each addition copies what there is


def _charge_json(budget: RenderingBudget, values: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    characters = budget.read(values[0])
    indent = _argument(values, kwargs, 2, "indent", None)
    separators = _argument(values, kwargs, 3, "separators", None)
    margin = indent if isinstance(indent, int) else budget.read(indent or "")
    margin = margin * _depth(values[0]) + budget.read(separators or "")
    budget.write(characters * (2 + margin))


def _depth(value: Any) -> int:
    """Levels of nested containers in a value that was read before, which bounds the work."""
    deepest, waiting = 0, [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        deepest = max(deepest, depth)
        members = item.values() if isinstance(item, Mapping) else item
        if isinstance(item, (Mapping, list, tuple)):
            waiting += [(member, depth + 1) for member in members]
    return deepest


_CHARGES: dict[str, Charge] = {
    "batch": _charge_pieces,
    "center": _charge_width,
    "format": _charge_format,
    "indent": _charge_indent,
    "join": _charge_joining,
    "replace": _charge_replacement,
    "round": _charge_round,
    "slice": _charge_pieces,
    "sum": _charge_sum,
    "tojson": _charge_json,
}
