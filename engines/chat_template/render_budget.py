"""What rendering one template may cost, and what its operations cost.

A thread cannot be stopped by a clock, so the work itself is counted. Two counts bound time and
memory: steps (a turn of a loop, a quarter of a call, a member of a value that is walked through,
256 characters that are read) and characters (of all text that the rendering makes, shown or
not). What an operation would make is counted before it is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, Sized, ValuesView
from contextvars import ContextVar
from typing import Any

from jinja2 import TemplateRuntimeError
from jinja2.utils import Namespace

MAX_STEPS = 2_000_000
MAX_CHARACTERS = 64 << 20
MAX_INTEGER_BITS = 4096

STEPS_PER_CALL = 4
_CHARACTERS_PER_STEP = 256
_MEMBER_CHARACTERS = 8  # a member's punctuation, or a number, when a container is written out
_CONTAINERS = (list, tuple, dict, Set, ValuesView)
_CONSTANT_TIME = ("get", "items", "keys", "values")
_PRINTF = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(\*|\d+)?(?:\.(\*|\d+))?")


class TemplateLimitError(TemplateRuntimeError):
    """Rendering would take more than its budget."""


class RenderingBudget:
    """Counts what one rendering does; every method raises TemplateLimitError beyond the limits."""

    def __init__(self, steps: int = MAX_STEPS, characters: int = MAX_CHARACTERS) -> None:
        self._max_steps, self._max_characters = steps, characters
        self._steps = self._characters = 0

    def step(self, count: int = 1) -> None:
        """Count work."""
        self._steps += count
        if self._steps > self._max_steps:
            raise TemplateLimitError(f"it takes more than {self._max_steps} steps")

    def write(self, characters: int) -> None:
        """Count text that is about to be made, or just was."""
        self._characters += characters
        if self._characters > self._max_characters:
            raise TemplateLimitError(f"it writes more than {self._max_characters} characters")

    def read(self, value: Any) -> int:
        """Count a walk through a value with all its members, as comparing or printing it does.

        Returns about how many characters `str(value)` has.
        """
        if isinstance(value, str):
            self.step(1 + len(value) // _CHARACTERS_PER_STEP)
            return len(value)
        characters, waiting = 0, [value]
        while waiting:
            item = waiting.pop()
            kind = type(item)
            self.step()
            characters += _MEMBER_CHARACTERS
            if kind is str or isinstance(item, (str, bytes)):
                self.step(len(item) // _CHARACTERS_PER_STEP)
                characters += len(item)
            elif kind is list or kind is tuple:
                waiting += item
            elif kind is dict:
                waiting += item
                waiting += item.values()
            elif isinstance(item, Namespace):
                waiting.append(object.__getattribute__(item, "_Namespace__attrs"))
            elif isinstance(item, _CONTAINERS):
                waiting += item
            else:
                self._check_integer(item)
        return characters

    def show(self, value: Any) -> None:
        """Count a value that becomes text."""
        self.write(self.read(value))

    def text_of(self, value: Any) -> int:
        """Count a look at a text, or at a value that becomes one; returns its characters."""
        characters = self.read(value)
        if not isinstance(value, str):
            self.write(characters)
        return characters

    def search(self, container: Any) -> Any:
        """Count a search, in which a mapping finds its key at once and others compare.

        Returns what to search: an iterator's items are counted as they come.
        """
        if isinstance(container, Iterator):
            return (_after_reading(self, item) for item in container)
        if isinstance(container, range):
            self.members(container)
        elif not isinstance(container, Mapping):
            self.read(container)
        return container

    def made(self, value: Any) -> None:
        """Count what an operation made, which is not much larger than what went into it."""
        if isinstance(value, (str, bytes)):
            self.write(len(value))
        elif isinstance(value, _CONTAINERS):
            self.step(len(value))
        else:
            self._check_integer(value)

    def members(self, value: Any) -> None:
        """Count one turn over a value's members; an iterator's are counted as they come."""
        if isinstance(value, (str, range, *_CONTAINERS)):
            self.step(len(value))

    def counted(self, values: Iterable[Any]) -> Iterator[Any]:
        """An iterator whose every item is a step."""
        for value in values:
            self.step()
            yield value

    def _check_integer(self, value: Any) -> None:
        if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
            raise TemplateLimitError(f"it computes integers of more than {MAX_INTEGER_BITS} bits")


def _after_reading(budget: RenderingBudget, value: Any) -> Any:
    budget.read(value)
    return value


_running: ContextVar[RenderingBudget] = ContextVar("template budget")


def running_budget() -> RenderingBudget:
    """The budget of the rendering that this thread is in; LookupError outside of one."""
    return _running.get()


def with_budget(budget: RenderingBudget, work: Callable[[], str]) -> str:
    """Run `work`, which renders a template, on a budget."""
    token = _running.set(budget)
    try:
        return work()
    finally:
        _running.reset(token)


# -- Operators


def charge_operator(budget: RenderingBudget, operator: str, left: Any, right: Any) -> None:
    """Count what a binary operator is about to make, where that may be much."""
    if operator == "*":
        _charge_product(budget, left, right)
    elif operator == "**":
        _charge_power(left, right)
    elif operator == "%" and isinstance(left, (str, bytes)):
        charge_printf(budget, left, right)
    elif operator == "-" and isinstance(left, Set):
        budget.read(right)  # is hashed


def _charge_product(budget: RenderingBudget, left: Any, right: Any) -> None:
    for value, times in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(value, Sequence):
            size = len(value) * max(times, 0)
            (budget.write if isinstance(value, (str, bytes)) else budget.step)(size)


def _charge_power(base: Any, exponent: Any) -> None:
    if (
        isinstance(base, int)
        and isinstance(exponent, int)
        and base.bit_length() * exponent > MAX_INTEGER_BITS
    ):
        raise TemplateLimitError(f"it computes integers of more than {MAX_INTEGER_BITS} bits")


def charge_printf(budget: RenderingBudget, template: str | bytes, values: Any) -> None:
    """Count what `template % values` makes: fields may be wide, or repeat a named value."""
    text = template if isinstance(template, str) else template.decode("latin-1")
    budget.read(text)
    given = budget.read(values)
    members = values if isinstance(values, tuple) else (values,)
    starred = max((abs(v) for v in members if isinstance(v, int)), default=0)
    fields = _PRINTF.findall(text)
    for field in fields:
        budget.write(sum(starred if size == "*" else int(size or 0) for size in field))
    budget.write(given * len(fields) if isinstance(values, Mapping) else given)


# -- Methods of built-in types


def charge_method(budget: RenderingBudget, owner: Any, name: str, arguments: Sequence[Any]) -> None:
    """Count what a method of a built-in type is about to do."""
    for argument in arguments:
        budget.read(argument)
    if isinstance(owner, (str, bytes)):
        budget.read(owner)
        _charge_text_method(budget, owner, name, arguments)
    elif isinstance(owner, int):
        charge_widths(budget, arguments)  # to_bytes
    elif isinstance(owner, (list, tuple)):
        budget.read(owner)  # index and count compare
    elif name not in _CONSTANT_TIME:
        budget.members(owner)


def _charge_text_method(
    budget: RenderingBudget, owner: str | bytes, name: str, arguments: Sequence[Any]
) -> None:
    if name in ("center", "ljust", "rjust", "zfill"):
        charge_widths(budget, arguments)
    elif name == "expandtabs":
        charge_widths(budget, [len(owner) * a for a in arguments if isinstance(a, int)])
    elif name == "replace" and len(arguments) > 1:
        charge_replace(budget, owner, arguments[0], arguments[1])
    elif name == "join" and arguments:
        charge_join(budget, arguments[0], owner)
    elif name == "translate" and arguments and isinstance(arguments[0], Mapping):
        budget.write(len(owner) * max(map(budget.read, arguments[0].values()), default=0))
    elif name == "striptags":
        charge_squared(budget, owner)


def charge_widths(budget: RenderingBudget, arguments: Iterable[Any]) -> None:
    """Count what numbers that may be the width of a text ask for."""
    budget.write(sum(abs(argument) for argument in arguments if isinstance(argument, int)))


def charge_join(budget: RenderingBudget, values: Any, separator: Any) -> None:
    """Count what joining `values` makes."""
    budget.show(values)
    if isinstance(values, Sized):
        budget.write(len(values) * budget.read(separator))


def charge_replace(budget: RenderingBudget, text: Any, old: Any, new: Any) -> None:
    """Count what replacing every `old` by `new` makes."""
    length = budget.read(text)
    known = isinstance(text, (str, bytes)) and isinstance(old, type(text))
    places = text.count(old) if known else length + 1
    budget.write(length + places * budget.read(new))


def charge_squared(budget: RenderingBudget, text: Any) -> None:
    """Count work that may grow with the square of a text's length."""
    budget.step(budget.read(text) ** 2 >> 16)
