"""Chat templates: what transformers renders, and no way out, no hang, no flood."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from specplug import template_bounds
from specplug.template_bounds import LARGEST
from specplug.templates import compile_template, render_template
from tests_support.tiny import CHAT_TEMPLATE

MESSAGES = [
    {"role": "system", "content": "Réponds «court»."},
    {"role": "user", "content": "Say 'hi' & <b>bye</b>."},
    {"role": "assistant", "content": " hi\nbye "},
    {"role": "user", "content": "Again."},
]
VARIABLES = {"add_generation_prompt": True, "bos_token": "<s>"}

REAL = {  # between them, what the templates of the models we export use
    "ours": CHAT_TEMPLATE,
    "namespace": "{% set ns = namespace(found=false, n=0) %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{% set ns.found = true %}{% set ns.n = ns.n + 1 %}{% endif %}"
    "{% endfor %}{{ ns.found }}{{ ns.n * 2 }}{{ ns.n % 2 }}",
    "slices": "{% for m in messages[1:] %}{{ loop.index0 }}{{ loop.last }}{{ loop.length }}"
    "{{ m.content.strip() | trim }}{% if not loop.last %}|{% endif %}{% endfor %}"
    "{% for m in messages[::-1] %}{{ m.role.upper() }}{% endfor %}",
    "control": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
    "{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}{% else %}none{% endfor %}",
    "macro": "{% macro show(m, mark='#') %}{{ mark }}{{ m.role ~ ': ' ~ m.content }}"
    "\n{% endmacro %}{% for m in messages %}{{ show(m, mark='*' * 3) }}{% endfor %}",
    "filters": "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content')"
    " | join(' + ') }}{{ messages | length }}{{ messages | tojson }}"
    "{{ messages[0] | tojson(indent=4) }}{{ 'a,b'.split(',') | first | upper }}"
    "{{ {'b': 1, 'a': 2} | dictsort }}",
    "unpacking": "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}"
    "{% set a, b = messages[0].role, [1, (2, 'x')] %}{{ a }}{{ b }}{{ b[1][1] }}",
    "tests": "{{ messages is sequence }}{{ tools is defined }}{{ messages[0].content is string }}"
    "{{ 'role' in messages[0] }}{{ bos_token }}{{ 300000 > 5 }}{{ '1000000' | int }}",
    "blocks": "{% set text %}{% for m in messages %}{{ m.content }}{% endfor %}{% endset %}"
    "{{ text | replace('hi', 'ho') | indent(2) }}{{ '%s-%03d' % ('x', 7) }}{{ '{}'.format(3) }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% endfor %}",
    "json": "{{ messages | tojson(4) }}{{ messages | tojson(true, 2) }}"
    "{{ messages[0] | tojson(sort_keys=true, separators=(',', ':')) }}"
    "{{ messages[0] | tojson(false, none, (';', '='), true) }}",
    "sums": "{{ [1, 2.5, true] | sum }}"
    "{{ messages | map(attribute='content') | map('length') | sum }}"
    "{{ [{'n': {'m': 3}}, {'n': {'m': 4}}] | sum('n.m', 5) }}{{ [] | sum(start=7) }}",
    "recursive": "{% for x in [[1, [2]], 3] recursive %}{% if x is iterable %}({{ loop(x) }})"
    "{% else %}{{ x }}{% endif %}{% endfor %}",
    "whitespace": "  {%- if add_generation_prompt %}\n    yes\n  {% endif %}\nend\n",
}


def render(source: str) -> str:
    return render_template(compile_template(source), MESSAGES, VARIABLES)


@pytest.mark.parametrize("name", REAL)
def test_text_is_transformers(name: str) -> None:
    expected = render_jinja_template([MESSAGES], chat_template=REAL[name], **VARIABLES)[0][0]
    assert render(REAL[name]) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[7].content.x }}",
        "{{ 1 / 0 }}",
        "{% include 'specplug.json' %}",
    ],
)
def test_no_way_out(source: str) -> None:
    with pytest.raises(ValueError, match="the chat template refuses these messages"):
        render(source)


def doubled(how: str, start: str = "'ab'") -> str:
    return (
        f"{{% set ns = namespace(x={start}) %}}{{% for i in range(900) %}}{how}{{% endfor %}}"
        "{{ ns.x }}"
    )


FLOODS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "{{ range(99999) | select('in', range(99999) | list) | list | length }}",
    "{{ 'x' * 10 ** 10 }}",
    "{{ 10 ** 10 * [1] }}",
    "{{ 9 ** 99999999 }}",
    "{{ 'x'.center(10 ** 10) }}",
    "{{ 'x' | center(10 ** 10) }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '%*d' % (10 ** 10, 1) }}",
    "{{ 12345678 | round(-999999999) }}",
    "{{ ([range(99999) | list] * 99) | tojson(indent=9999) }}",
    "{{ ('a,' * 8000000).split(',') | map('center', 9999) | list }}",
    "{{ ([range(99999) | list] * 99999) | sum(start=[]) }}",
    "{{ ('a' * 9999999).translate({97: 'b' * 9999999}) }}",
    "{{ ('a' * 9999999) | replace('a', 'b' * 9999999) }}",
    "{{ ('a' * 9999999).replace('', 'b' * 9999999) }}",
    "{{ (['a'] * 9999999) | join('b' * 9999999) }}",
    "{{ (('a' * 9999) ~ '\n') * 1000 | indent(9999) }}",
    doubled("{% set ns.x = ns.x ~ ns.x %}"),
    doubled("{% set ns.x = ns.x + ns.x %}"),
    doubled("{% set ns.x = [ns.x, ns.x] %}"),
    doubled("{% set ns.x = {1: ns.x, 2: ns.x} %}"),
    doubled("{% set ns.x = (ns.x, ns.x) %}"),
    doubled("{% set ns.x = dict(a=ns.x, b=ns.x) %}"),
    doubled("{% set ns.x = [ns.x, ns.x] | join %}"),
    doubled("{% set ns.x = '%s%s' % (ns.x, ns.x) %}"),
    doubled("{% set ns.x = '{0}{0}'.format(ns.x) %}"),
    doubled("{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
    doubled("{% set ns.x = ns.x * ns.x %}", "3"),
]


@pytest.mark.parametrize("source", FLOODS)
def test_floods_are_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_bounds, "SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(ValueError, match="the chat template refuses these messages"):
        render(source)
    assert time.monotonic() - started < 10


STEPS = st.sampled_from(
    [
        "{% set ns.x = ns.x ~ ns.x %}",
        "{% set ns.x = [ns.x, ns.x] %}",
        "{% set ns.x = ns.x * 7 %}",
        "{% set ns.x = ns.x | string | replace('a', 'aa') %}",
        "{% set ns.x = ns.x | list %}",
        "{% set ns.x = ns.x | string | indent(50) %}",
        "{% set ns.x = ns.x | map('string') | join('ab') %}",
        "{% set ns.x = ns.x | batch(2, 'a') | list %}",
        "{% set ns.x = ns.x | tojson %}",
        "{% set ns.x = ns.x[:500] %}",
        "{% set ns.x = '{0}{0}%s'.format(ns.x) % (1,) %}",
        "{{ ns.x }}",
    ]
)


LOOPS = st.tuples(st.integers(1, 60), st.lists(STEPS, min_size=1))


@settings(deadline=None, max_examples=30)
@given(st.lists(LOOPS, min_size=1, max_size=5))
def test_whatever_a_template_does_it_ends(loops: list[tuple[int, list[str]]]) -> None:
    source = "{% set ns = namespace(x='a') %}"
    for count, steps in loops:
        source += f"{{% for i in range({count}) %}}{''.join(steps)}{{% endfor %}}"
    started = time.monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(template_bounds, "SECONDS", 0.1)
        try:
            text = render(source)
        except ValueError as error:
            text = str(error)
    assert len(text) <= 2 * LARGEST
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ " + "(" * 5000, "{% if x %}" * 3000, "{{ " + "9" * 100_000 + " }}"]
)
def test_what_does_not_parse_is_an_error(source: str) -> None:
    with pytest.raises(ValueError, match="the chat template does not parse"):
        compile_template(source)
