"""Chat templates that try to hang a process, to hold Python's lock, or to fill memory."""

from __future__ import annotations

from itertools import product

A = "('a' * 4000000)"  # just under what a value may have
WORDS = "('ab ' * 1300000)"
CHINESE = "('\u4e00' * 4000000)"
LINES = "('\n' * 4000000)"
NUMBERS = "(range(99999) | list)"
MERSENNE = "2305843009213693951"  # Python's hash of an integer is its remainder of this


def repeated(step: str, start: str = "'ab'", times: int = 900) -> str:
    """A step again and again over ``ns.x``."""
    return (
        f"{{% set ns = namespace(x={start}) %}}{{% for i in range({times}) %}}{step}{{% endfor %}}"
        "{{ ns.x }}"
    )


def straight(step: str, start: str, times: int = 1000) -> str:
    """A step again and again without a loop."""
    return f"{{% set x = {start} %}}" + step * times


HOLDING = {  # one operation
    "wordwrap of a word": "{{ ('a' * 1000000) | wordwrap(1) }}",
    "wordwrap of words": f"{{{{ {WORDS} | wordwrap(1) }}}}",
    "wordwrap of hyphens": "{{ ('a-' * 60000) | wordwrap(79) }}",
    "wordwrap of dots": "{{ ('.--' * 40000) | wordwrap(79) }}",
    "wordwrap with a long break": "{{ ('a ' * 60000) | wordwrap(2, wrapstring='b' * 9999) }}",
    "power of powers": "{{ 2 ** 10 ** 9 }}",
    "power": "{{ 3 ** 3000000 }}",
    "hexadecimal": "{{ (('f' * 4000000) | int(base=16)) // (('e' * 2000000) | int(base=16)) }}",
    "octal": "{{ ('7' * 4000000) | int(0, 8) % 12345678901234567890 }}",
    "decimal": "{{ ('9' * 4000000) | int }}",
    "ternary": "{{ ('2' * 4000000) | int(base=3) }}",
    "float": "{{ ('0.' ~ '1' * 3999999) | float }}",
    "rfind": "{{ ('a' * 2000000).rfind('ab' ~ 'a' * 999999) }}",
    "rindex": "{{ ('a' * 2000000).rindex('ab' ~ 'a' * 999999) }}",
    "rsplit": "{{ ('a' * 2000000).rsplit('ab' ~ 'a' * 999999) | length }}",
    "rpartition": "{{ ('a' * 2000000).rpartition('ab' ~ 'a' * 999999) | length }}",
    "find": "{{ ('a' * 2000000).find('a' * 499999 ~ 'b' ~ 'a' * 499999) }}",
    "in": "{{ ('a' * 499999 ~ 'b' ~ 'a' * 499999) in ('a' * 2000000) }}",
    "count": "{{ ('a' * 2000000).count('a' * 499999 ~ 'b' ~ 'a' * 499999) }}",
    "expandtabs": "{{ ('\t' * 4000000).expandtabs(9999) | length }}",
    "nested width": "{{ '{:{}}'.format(1, 10 ** 10) }}",
    "nested width by name": "{{ '{a:{b}}'.format_map({'a': 1, 'b': 10 ** 10}) }}",
    "many widths": "{{ ('{0:9999}' * 400000).format(1) | length }}",
    "many percent widths": "{{ (('%9999d' * 99999) % ((1,) * 99999)) | length }}",
    "bytes": "{{ ('%9999999999d'.encode() % 1) | length }}",
    "bytes again": "{{ ('a' * 4000000).encode('unicode_escape') * 100 }}",
    "names of characters": f"{{{{ {CHINESE}.encode('ascii', 'namereplace') | length }}}}",
    "punycode": f"{{{{ {CHINESE}.encode('punycode') | length }}}}",
    "one hash": f"{{% set ns = namespace(x=[]) %}}{{% for i in range(99999) %}}"
    f"{{% set ns.x = ns.x + [[i * {MERSENNE} * 4, i]] %}}{{% endfor %}}{{{{ dict(ns.x) }}}}",
    "one hash at once": f"{{{{ dict((range(99999) | map('string') | map('replace', '', '0')) | "
    f"map('int') | batch(2)) | length }}}}{{{{ dict([[{MERSENNE}, 1]] * 99999) | length }}}}",
    "one hash, literally": "{{ {"
    + ", ".join(f"{int(MERSENNE) * i}: 0" for i in range(1, 30001))
    + "} | length }}",
    "unique": f"{{{{ [{MERSENNE}, 1] * 250000 | list | unique | list | length }}}}",
    "sort": f"{{{{ {A} | sort | length }}}}",
    "sort of numbers": f"{{{{ ({NUMBERS} * 5) | sort(reverse=true) | length }}}}",
    "dictsort": f"{{{{ dict(({NUMBERS} | batch(2)) | list) | dictsort | length }}}}",
    "groupby": f"{{{{ ({NUMBERS} * 5) | groupby('real') | length }}}}",
    "list": f"{{{{ {CHINESE} | list | length }}}}",
    "batch": f"{{{{ {CHINESE} | batch(2, 'x') | list | length }}}}",
    "slice": f"{{{{ {CHINESE} | slice(9999, 'x') | list | length }}}}",
    "arguments": f"{{{{ dict(*{CHINESE}) }}}}",
    "arguments of a filter": f"{{{{ 'a' | default(*{CHINESE}) }}}}",
    "xmlattr": f"{{{{ {{'a': {A}}} | xmlattr | length }}}}",
    "urlize of dots": "{{ ('http://a' ~ '.' * 3000000) | urlize | length }}",
    "urlize of brackets": "{{ ('(' * 3000000) | urlize | length }}",
    "urlize of mails": "{{ ('a@' * 1000000) | urlize(9999, true) | length }}",
    "striptags": "{{ ('<!---->' * 500000) | striptags | length }}",
    "striptags, open": "{{ ('<' * 3999999) | striptags | length }}",
    "striptags of a name": "{{ ('&' * 3999999) | striptags | length }}",
    "wordcount": f"{{{{ {WORDS} | wordcount }}}}",
    "title": f"{{{{ {WORDS} | title | length }}}}",
    "escape": "{{ ('<' * 4000000) | e | e | e | length }}",
    "urlencode": f"{{{{ {CHINESE} | urlencode | length }}}}",
    "pprint": "{% set ns = namespace(x=1) %}{% for i in range(150) %}{% set ns.x = [ns.x, 'a b' * "
    "999] %}{% endfor %}{{ ns.x | pprint | length }}",
    "tojson": f"{{{{ [{NUMBERS}] | tojson(indent=400) | length }}}}",
    "join of text": f"{{{{ {A} | join('ab' * 4000) | length }}}}",
    "join by a method": f"{{{{ ('ab' * 4000).join({A}) | length }}}}",
    "replace of nothing": f"{{{{ {A}.replace('', 'bbbbbbbb') | length }}}}",
    "splitlines": f"{{{{ {LINES}.splitlines() | length }}}}",
    "split": f"{{{{ {WORDS}.split() | length }}}}",
    "split at a letter": f"{{{{ {A}.split('a') | length }}}}",
    "maketrans": f"{{{{ ''.maketrans({A}, {A}) | length }}}}",
    "fromkeys": f"{{{{ {{}}.fromkeys({NUMBERS} * 5, 1) | length }}}}",
    "layout of a date": "{{ strftime_now('%c' * 999999) | length }}",
    "width of a date": "{{ strftime_now('%999999999d' * 50) | length }}",
    "message": f"{{{{ raise_exception({A}) }}}}",
    "tuple in a tuple": repeated("{% set ns.x = (ns.x, 1) %}", times=99999) + "{{ {ns.x: 1} }}",
    "views that double": repeated("{% set ns.x = {1: ns.x, 2: ns.x}.items() %}"),
    "namespaces that double": "{% set a = namespace(x='a') %}"
    + "".join(
        f"{{% set {new} = namespace(x=[{old}, {old}]) %}}"
        for old, new in zip(
            ["a", *(f"n{i}" for i in range(40))], [f"n{i}" for i in range(41)], strict=True
        )
    )
    + "{{ n40 }}",
    "a namespace that grows in a list": "{% set ns = namespace(x='') %}{% set many = [ns] * 99999 "
    f"%}}{{% set ns.x = {A} %}}{{{{ many }}}}",
    "a namespace within itself": "{% set ns = namespace() %}{% set ns.x = [ns, ns] %}{{ ns }}",
    "index of a list": f"{{{{ ([{NUMBERS}] * 4).index({NUMBERS} + [1]) }}}}",
}
"""Each within one operation, or few."""

OFTEN = {
    "comparisons": straight("{{ x == x ~ 'b' and x < x ~ 'a' }}", A),
    "comparisons of lists": straight("{{ x < x + [1] }}", f"({NUMBERS} * 4)"),
    "memberships": straight("{{ 'ab' in x }}{{ 'b' in x }}", A),
    "memberships of lists": straight("{{ -1 in x }}", f"({NUMBERS} * 4)"),
    "slices": straight("{{ x[1:] | length }}{{ x[::-1] | length }}", A),
    "outputs": straight("{{ x }}", NUMBERS),
    "keys": straight("{{ {}[x] }}", "((1,) * 400000)"),
    "values kept": "".join(f"{{% set x{i} = {CHINESE} %}}" for i in range(3000)),
    "values in a loop": "{% for i in range(99999) %}{{ 'a' * 4000000 }}{% endfor %}",
    "blocks kept": "{% for i in range(99999) %}{% set x %}{{ 'a' * 4000000 }}{% endset %}"
    "{% endfor %}",
    "macros": "{% macro f(n) %}{% for i in range(9) %}{{ f(n) }}{% endfor %}{% endmacro %}"
    "{{ f(1) }}",
    "macros that hold": "{% macro f(n, x) %}{{ f(n + 1, 'a' * 4000000) }}{{ x }}{% endmacro %}"
    "{{ f(1, '') }}",
    "loops within themselves": "{% for x in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "loops' length": "{% for x in range(99999) %}{% for y in range(99999) %}{{ loop.length }}"
    "{% endfor %}{% endfor %}",
    "calls": "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call f() %}" * 40
    + "a"
    + "{% endcall %}" * 40,
    "changed": f"{{% for i in range(99999) %}}{{{{ loop.changed({NUMBERS}) }}}}{{% endfor %}}",
    "cycler": "{% set c = cycler(*range(99999)) %}{% for i in range(99999) %}{{ c.next() ~ "
    "c.items }}{% endfor %}",
    "joiner": f"{{% set j = joiner({A}) %}}{{% for i in range(99999) %}}{{{{ j() }}}}"
    "{% endfor %}",
    "escaped": "{% autoescape true %}{% set x = '<' * 4000000 %}"
    "{% for i in range(999) %}{{ x }}{% endfor %}{% endautoescape %}",
    "filters of filters": f"{{{{ {NUMBERS} | map('string') | map('center', 9999) | map('upper') | "
    "list | length }}",
    "tests of tests": f"{{{{ {NUMBERS} | select('in', {NUMBERS}) | reject('in', {NUMBERS}) | "
    "list }}",
    "a filter block": "{% filter upper %}{% for i in range(99999) %}{{ 'ab' * 99999 }}{% endfor %}"
    "{% endfilter %}",
}
"""Each step short, and too many of them."""

_STARTS = {"letters": A, "words": WORDS, "Chinese": CHINESE, "lines": LINES, "numbers": NUMBERS}
_STEPS = {
    "filters": ["upper", "title", "reverse", "string", "capitalize", "trim", "length", "list"],
    "more": ["sort", "unique", "batch(3)", "slice(3)", "join('x')", "wordcount", "urlencode", "e"],
    "text": ["pprint", "tojson", "xmlattr", "striptags", "urlize", "wordwrap", "indent", "int"],
    "others": ["truncate(99)", "center(99)", "replace('a', 'bc')", "max", "min", "first", "random"],
}

GENERATED = {
    f"{name}, {kind}": "".join(f"{{{{ {start} | {step} | string | length }}}}" for step in [chosen])
    for (name, start), steps in product(_STARTS.items(), _STEPS.values())
    for kind, chosen in zip(steps, steps, strict=True)
}
"""Every filter over every large value; most end well."""
