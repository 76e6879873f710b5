"""A jinja2 sandbox that counts: a template cannot loop, call or write without end.

jinja2's own sandbox keeps a template from reaching outside, and leaves its cost to the caller. This
one puts counters where work can grow. The parsed template is rewritten, so that turns of loops,
literal text, comparisons and concatenations are counted; operators, calls, filters and tests pass
through hooks that count what they are about to do (`engines.chat_template.render_budget`). Nothing
is folded when the template is compiled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import EscapeFormatter, Markup

from engines.chat_template.filters import counted_filter, counted_lipsum, counted_test
from engines.chat_template.render_budget import (
    STEPS_PER_CALL,
    RenderingBudget,
    charge_method,
    charge_operator,
    charge_widths,
    running_budget,
)

# Filters that the rewriting adds. No template can write these names.
_STEP, _WRITE, _READ, _SHOW, _MADE, _SEARCH = (
    f"({name})" for name in ("step", "write", "read", "show", "made", "search")
)


class CountingSandbox(ImmutableSandboxedEnvironment):
    """An environment whose templates render on `render_budget.with_budget` only.

    Args:
        filters: more filters, or others of the same name.
        options: of `jinja2.Environment`.
    """

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self, filters: Mapping[str, Callable[..., Any]], **options: Any) -> None:
        super().__init__(optimized=False, finalize=_finalize, **options)
        self.filters |= filters
        self.globals["lipsum"] = counted_lipsum
        self.filters = {name: counted_filter(name, f) for name, f in self.filters.items()}
        tests: dict[str, Any] = self.tests
        self.tests = {name: counted_test(name, test) for name, test in tests.items()}
        self.filters |= {
            _STEP: _count_step,
            _WRITE: lambda size: running_budget().write(size),
            _READ: lambda value: _after(value, RenderingBudget.read),
            _SHOW: lambda value: _after(value, RenderingBudget.show),
            _MADE: lambda value: _after(value, RenderingBudget.made),
            _SEARCH: lambda value: running_budget().search(value),
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Rewriter().visit(super()._parse(source, name, filename))
        template.set_environment(self)
        return template

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = running_budget()
        charge_operator(budget, operator, left, right)
        return _after(super().call_binop(context, operator, left, right), RenderingBudget.made)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):  # is hashed
            running_budget().read(argument)
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        budget = running_budget()
        budget.step(STEPS_PER_CALL + len(args))
        owner = getattr(__obj, "__self__", None)
        if isinstance(__obj, (BuiltinMethodType, MethodType)) and not isinstance(owner, Namespace):
            args = tuple(list(a) if isinstance(a, Iterator) else a for a in args)
            named = (v for k, v in kwargs.items() if k not in ("_loop_vars", "_block_vars"))
            charge_method(budget, owner, __obj.__name__, (*args, *named))
        elif not isinstance(__obj, (Macro, LoopContext, type)):
            for argument in args:
                budget.read(argument)
        return _after(super().call(__context, __obj, *args, **kwargs), RenderingBudget.made)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        text = value.__self__
        formatter = (
            _CountingEscapeFormatter(self, escape=text.escape)
            if isinstance(text, Markup)
            else _CountingFormatter(self)
        )

        def wrapper(*args: Any, **kwargs: Any) -> str:
            if value.__name__ == "format_map":
                (kwargs,) = args
                args = ()
            running_budget().read(text)
            formatted: str = type(text)(formatter.vformat(text, args, kwargs))
            return formatted

        return wraps(value)(wrapper)


class _Rewriter(NodeTransformer):
    """Adds counters to a parsed template."""

    def visit_Output(self, node: nodes.Output) -> list[nodes.Node]:  # noqa: N802
        self.generic_visit(node)
        size = sum(len(child.data) for child in node.nodes if isinstance(child, nodes.TemplateData))
        return [_statement(_WRITE, size, node), node] if size else [node]

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if node.test is None:
            node.body.insert(0, _statement(_STEP, 1, node))
        else:  # counts the members that the test leaves out too
            tick = _filter(nodes.Const(1, lineno=node.lineno), _STEP)
            node.test = nodes.And(tick, node.test, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_filter(item, _SHOW) for item in node.nodes]
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _filter(node.expr, _READ)
        for operand in node.ops:
            operand.expr = _filter(operand.expr, _SEARCH if "in" in operand.op else _READ)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(node, _MADE) if isinstance(node.arg, nodes.Slice) else node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = _filter(node.key, _READ)  # is hashed
        return node


class _CountingFormatter(SandboxedFormatter):
    """`str.format` whose fields are counted before they are written."""

    def convert_field(self, value: Any, conversion: Any) -> Any:
        if conversion:
            running_budget().show(value)
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        budget = running_budget()
        budget.show(value)
        charge_widths(budget, map(int, re.findall(r"\d+", format_spec)))
        return super().format_field(value, format_spec)


class _CountingEscapeFormatter(_CountingFormatter, EscapeFormatter):
    pass


@pass_context  # which also keeps jinja2 from folding constants
def _finalize(context: Context, value: Any) -> Any:
    return _after(value, RenderingBudget.show)


def _after(value: Any, count: Callable[[RenderingBudget, Any], Any]) -> Any:
    count(running_budget(), value)
    return value


def _count_step(count: int) -> bool:
    running_budget().step(count)
    return True


def _filter(node: nodes.Expr, name: str) -> nodes.Expr:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _statement(name: str, value: int, place: nodes.Node) -> nodes.Node:
    constant = nodes.Const(value, lineno=place.lineno)
    return nodes.ExprStmt(_filter(constant, name), lineno=place.lineno)
