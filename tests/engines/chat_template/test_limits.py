"""Rendering is bounded: whatever a template does, it is refused after a counted amount of work."""

from __future__ import annotations

import functools
import re
import tracemalloc
from pathlib import Path

import pytest

import engines.chat_template.template
from engines.chat_template.render_budget import MAX_CHARACTERS, MAX_STEPS, RenderingBudget
from engines.chat_template.template import ChatTemplate
from engines.errors import EngineDirectoryError, InvalidRequestError

MESSAGES = [{"role": "user", "content": "Hi"}]
STEPS, CHARACTERS = 20_000, 1 << 20
DOUBLE = "{{% set n = namespace(s={start}) %}}{{% for i in range(99) %}}{step}{{% endfor %}}{end}"


def doubled(step: str, start: str = "'xx'", end: str = "") -> str:
    """A template that makes a value from itself, 99 times."""
    return DOUBLE.format(start=start, step="{% set n.s = " + step + " %}", end=end)


def twice(end: str, start: str = "[1]", step: str = "[n.s, n.s]") -> str:
    """A value of 2^99 members in 99 containers, and one use of it."""
    return doubled(step, start, end)


LOOPS = [
    "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) if false %}{% endfor %}",
    "{% for a in 'x' * 99999 %}{% endfor %}",
    "{% for a in [1] recursive %}{{ loop([1, 1]) if loop.depth < 90 }}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call f() %}" * 40
    + "{% endcall %}" * 40,
    "{{ range(99999) | map('string') | map('length') | sum }}",
    "{{ range(99999) | select('odd') | list }}",
    "{{ range(99999) | reject('number') | first }}",
    "{{ range(99999) | join }}",
    "{{ 'x' in range(99999) }}",
    "{{ 'x' in range(99999) | map('string') }}",
    "{{ range(99999).index('x') }}",
    "{{ dict.fromkeys(range(99999)) }}",
    "{{ dict(range(99999) | map('string') | batch(1)) }}",
    "{{ [1] | batch(10 ** 10, 0) | list }}",
    "{{ [1] | slice(10 ** 10) | list }}",
    "{{ range(9999) | batch(1) | sum(start=[]) }}",
    "{{ [1] * 10 ** 10 }}",
    "{{ ('<!--' * 20000) | striptags }}",
    "{{ ('a ' * 20000) | wordwrap(1, wrapstring='x' * 99) }}",
    "{% set n = namespace() %}{% set n.a = n %}{{ n }}",
    doubled("n.s + n.s", "[1]"),
    doubled("n.s * 9", "[1]"),
    twice("{{ n.s }}"),
    twice("{{ n.s | tojson }}"),
    twice("{{ n.s ~ 1 }}"),
    twice("{{ n.s == n.s | list }}"),
    twice("{{ n.s | string | length }}"),
    twice("{{ '%s' % (n.s,) }}"),
    twice("{{ '{!r}'.format(n.s) }}"),
    twice("{{ n.s is eq n.s }}"),
    twice("{{ [n.s] | sort }}"),
    twice("{{ [1].index(n.s) }}"),
    twice("{{ raise_exception(n.s) }}"),
    twice("{{ {n.s: 1} }}", "(1,)", "(n.s, n.s)"),
    twice("{{ {}[n.s] }}", "(1,)", "(n.s, n.s)"),
    twice("{{ n.s in {1: 1} }}", "(1,)", "(n.s, n.s)"),
    twice("{{ {}.get(n.s) }}", "(1,)", "(n.s, n.s)"),
    twice("{{ {} | items | list }}", "(1,)", "{n.s: n.s} | items | first"),
    "{% set n = namespace(s=namespace(a=1)) %}{% for i in range(99) %}"
    "{% set n.s = namespace(a=n.s, b=n.s) %}{% endfor %}{{ n.s }}",
]
TEXT = [
    "{{ 'x' * 10 ** 10 }}",
    "{% for i in range(9999) %}" + "some text " * 99 + "{% endfor %}",
    "{% set s %}{% for i in range(9999) %}" + "some text " * 99 + "{% endfor %}{% endset %}",
    "{% for i in range(9999) %}{% set s %}" + "some text " * 99 + "{% endset %}{% endfor %}",
    "{{ 'x' | center(10 ** 10) }}",
    "{{ 'x'.center(10 ** 10) }}",
    "{{ 'x'.zfill(10 ** 10) }}",
    "{{ '\\t'.expandtabs(tabsize=10 ** 10) }}",
    "{{ 'a\\nb' | indent(10 ** 10) }}",
    "{{ (1).to_bytes(length=10 ** 10, byteorder='big') }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '%*d' % (10 ** 10, 1) }}",
    "{{ '%.9999999f' % 1 }}",
    "{{ '%9999999999d' is odd }}",
    "{{ '%9999999999d' is divisibleby 2 }}",
    "{{ '%9999999999d' | format(1) }}",
    "{{ '{:9999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 10 ** 10) }}",
    "{{ '{a:{b}}'.format_map({'a': 1, 'b': 10 ** 10}) }}",
    "{{ ('{0}' * 9999).format('x' * 9999) }}",
    "{{ ('%(a)s' * 9999) % {'a': 'x' * 9999} }}",
    "{{ 'x' | round(9, 'ceil') }}",
    "{{ [[1]] | tojson(indent=10 ** 10) }}",
    "{{ [1, 2, 3] | tojson(separators=('x' * 999999, ':')) }}",
    "{{ lipsum(10 ** 9) }}",
    "{{ ('ab' * 999).translate({97: 'x' * 9999}) }}",
    "{{ (['x'] * 999) | join('y' * 9999) }}",
    "{{ ('y' * 9999).join(['x'] * 999) }}",
    "{{ ('y' * 9999).join((['x'] * 999) | map('upper')) }}",
    "{{ ([{'a': 'x' * 999}] * 1999) | join(attribute='a') }}",
    doubled("n.s ~ n.s"),
    doubled("n.s + n.s"),
    doubled("n.s.replace('x', 'xxx')"),
    doubled("n.s | replace('x', 'xxx')"),
    doubled("n.s.join(n.s)"),
    doubled("'%s%s' % (n.s, n.s)"),
    doubled("'{0}{0}'.format(n.s)"),
    doubled("[n.s, n.s] | join"),
    "{% set n = namespace(s='xx') %}{% for i in range(99) %}"
    "{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
    "{% set n = namespace(s='xx') %}{% for i in range(99) %}"
    "{% set n.s %}{% filter upper %}{{ n.s }}{{ n.s }}{% endfilter %}{% endset %}{% endfor %}",
]
INTEGERS = [
    "{{ 9 ** (9 ** 9) }}",
    doubled("n.s * n.s", "3"),
    "{{ 1 | round(10 ** 9, 'ceil') }}",
    "{{ ('f' * 99999) | int(base=16) }}",
]


def refusal(template: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a rendering with small limits is refused with; it must not take much memory."""
    small = functools.partial(RenderingBudget, steps=STEPS, characters=CHARACTERS)
    monkeypatch.setattr(engines.chat_template.template, "RenderingBudget", small)
    compiled = ChatTemplate(template, Path("t"), {})
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequestError) as refused:
            compiled.render(MESSAGES)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert refused.value.param == "messages"
    return str(refused.value)


@pytest.mark.parametrize("template", LOOPS)
def test_steps_are_counted(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"more than {STEPS} steps" in refusal(template, monkeypatch)


@pytest.mark.parametrize("template", TEXT)
def test_characters_are_counted(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"more than {CHARACTERS} characters" in refusal(template, monkeypatch)


@pytest.mark.parametrize("template", INTEGERS)
def test_integers_stay_small(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.search(r"4096 bits|1000000000 places", refusal(template, monkeypatch))


@pytest.mark.parametrize(
    "template",
    [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% block b %}{{ self.b() }}{% endblock %}",
    ],
)
def test_endless_recursion_is_refused(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "recurses too deeply" in refusal(template, monkeypatch)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' | center(10 ** 10) if false }}",
        "{% autoescape 'x' | center(9999999999) is none %}{% endautoescape %}",
        "{% set s = 'x' | center(9999999999) if false %}",
    ],
)
def test_nothing_is_computed_when_a_template_is_compiled(template: str) -> None:
    tracemalloc.start()
    try:
        ChatTemplate(template, Path("t"), {})
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_limits_are_per_rendering_and_leave_room_for_long_conversations() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{{ '<' + m.role + '>' + m.content | trim + '</>' }}"
        "{% if not loop.last and messages[loop.index0 + 1].role == m.role %}!{% endif %}"
        "{% endfor %}",
        Path("t"),
        {},
    )
    conversation = [
        {"role": ("user", "assistant")[i % 2], "content": "word " * 99} for i in range(4096)
    ]
    for _ in range(2):
        assert template.render(conversation).count("</>") == 4096
    assert MAX_STEPS >= 1_000_000
    assert MAX_CHARACTERS >= 1 << 24


def test_templates_outside_the_sandbox_are_not_rendered() -> None:
    with pytest.raises(EngineDirectoryError, match="malformed"):
        ChatTemplate("{% import 'x' as y %}{% for %}", Path("t"), {})
    for escape in (
        "{{ ''.__class__.__mro__ }}",
        "{% include '/etc/passwd' %}",
        "{{ messages.clear() }}",
    ):
        with pytest.raises(InvalidRequestError):
            ChatTemplate(escape, Path("t"), {}).render(MESSAGES)
