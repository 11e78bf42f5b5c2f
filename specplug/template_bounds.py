"""Bounds of what a chat template does: time, memory, and how long one operation can take.

Everything that a template can do is one of a closed set of operations of Python and Jinja. Each is
bounded **before** it runs: between operations the clock is looked at and other threads may go on,
within one of C nobody may, so none may take long. What is made is weighed and counted afterwards.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from string import Formatter
from typing import Any

from jinja2 import Environment
from jinja2.nodes import EvalContext
from jinja2.runtime import Context

SECONDS = 2.0
"""A template may take; real ones take a thousandth."""
LARGEST = 1 << 22
"""Characters that a value may have, an item counting as 8, beside 8 times those of the messages."""
MADE = 1 << 29
"""Bytes of all that a rendering makes, or 1,024 for each character of the messages."""
LONGEST_SOURCE = 1 << 18
"""Characters of a template; published ones have a tenth."""

_ITEM = 8  # an item's weight beside its characters
_DEEPEST = 200  # lists within lists; Python itself goes to 1,000
_BITS = 1 << 14  # of an integer: more than Python reads from decimal digits
_KEY_BITS = 64  # integers of more bits can be made to have equal hashes
_COLLIDING = 1000  # keys that may have equal hashes: 10 ms
_WIDEST = 10_000
_SORTED = 1 << 16  # items
_SEARCHED = 1 << 28  # comparisons of characters: 50 ms
_LAYOUT = 1000  # characters of a date's layout

_WIDTH = re.compile(r"\d{5}|\*")  # in a format
_NUMBER = re.compile(r"\d+")
_WITH_WIDTHS = {"batch", "center", "expandtabs", "indent", "ljust", "rjust", "round", "slice"} | {
    "to_bytes",
    "tojson",
    "truncate",
    "wordwrap",
    "zfill",
}
_ONE_BY_ONE = {"batch", "groupby", "list", "map", "max", "min", "reject", "rejectattr"} | {
    "select",
    "selectattr",
    "slice",
    "sort",
    "sum",
    "unique",
}
_BACKWARDS = {"rfind", "rindex", "rpartition", "rsplit"}  # Python's search is quadratic here
_AT_MOST = {"pprint": 1 << 16, "striptags": 1 << 20, "title": 1 << 20} | {
    "urlize": 1 << 12,
    "wordcount": 1 << 20,
}
_CODECS = {"utf-8", "utf8", "ascii", "latin-1", "latin1", "utf-16", "utf-32"}
_CODEC_ERRORS = {"strict", "ignore", "replace"}
_TEXT_METHODS = """
capitalize casefold center count encode endswith expandtabs find format format_map index isalnum
isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper
join ljust lower lstrip partition removeprefix removesuffix replace rfind rindex rjust rpartition
rsplit rstrip split splitlines startswith strip striptags swapcase title unescape upper zfill
"""
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_TEXT_METHODS.split()),
    bytes: frozenset({"decode", "hex"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    range: frozenset({"count", "index"}),
}
_LISTS: tuple[Any, ...] = (
    list,
    tuple,
    set,
    frozenset,
    *map(type, ({}.keys(), {}.values(), {}.items())),
)
_SCALARS = frozenset({str, int, float, bool, type(None), bytes})
_PASSED = (Environment, Context, EvalContext)  # what Jinja puts before a filter's own arguments


class _Bounds:
    """Of one rendering."""

    __slots__ = ("deadline", "largest", "left")

    def __init__(self, given: int) -> None:
        self.deadline = time.monotonic() + SECONDS
        self.largest = LARGEST + 8 * given
        self.left = max(MADE, 1024 * given)


_bounds: ContextVar[_Bounds] = ContextVar("bounds")


@contextmanager
def bounded(given: Any) -> Iterator[None]:
    """Within it operations are bounded; ``given`` is what the template gets to render."""
    token = _bounds.set(_Bounds(0))
    try:
        _bounds.set(_Bounds(_total(given, sys.maxsize, 50 * _DEEPEST)))
        yield
    finally:
        _bounds.reset(token)


def tick() -> None:
    """Look at the clock.

    Raises:
        ValueError: it is past the deadline.
    """
    if time.monotonic() > _bounds.get().deadline:
        raise ValueError(f"it takes longer than {SECONDS:g} seconds")


def ticking(values: Iterable[Any]) -> Iterator[Any]:
    """The values, with a look at the clock for each."""
    for value in values:
        tick()
        yield value


def check(weight: int) -> None:
    """Refuse to make something of a weight: characters, and 8 for an item."""
    if weight > (largest := _bounds.get().largest):
        raise ValueError(f"it makes something of more than {largest} characters")


def weighed(value: Any) -> Any:
    """The value, if it is not too large or too deep, and not too much was made before it.

    Raises:
        ValueError: it is.
    """
    bounds = _bounds.get()
    if type(value) is not str:
        if isinstance(value, int) and value.bit_length() > _BITS:
            raise ValueError(f"it makes an integer of more than {_BITS} bits")
        check(weight_of(value))
    elif len(value) > bounds.largest:
        check(len(value))
    bounds.left -= sys.getsizeof(value) if isinstance(value, str | bytes | list | dict) else 64
    if bounds.left < 0:
        raise ValueError("it makes more, all in all, than the memory it may have")
    return value


def weight_of(value: Any) -> int:
    """Characters, and 8 for each item, items of items included; at least the bound if more.

    Raises:
        ValueError: lists are within one another too deeply.
    """
    if isinstance(value, str):
        return _ITEM + len(value)
    return _total(value, _bounds.get().largest, _DEEPEST)


def _total(value: Any, largest: int, deepest: int) -> int:
    total, level, depth = 0, [value], 0
    while level:
        depth += 1
        if depth > deepest:
            raise ValueError(f"it makes lists within lists, {depth} deep")
        below: list[Any] = []
        for item in level:
            total += _ITEM + _length(item)
            if type(item) in _SCALARS:
                continue
            if isinstance(item, Mapping):
                below += [*item.keys(), *item.values()]
            elif isinstance(item, _LISTS):
                below += item
            if total + _ITEM * len(below) > largest:
                return largest + 1
        if len(below) > 1000:
            tick()
        level = below
    return total


def _length(value: Any) -> int:
    if isinstance(value, int):
        return value.bit_length() // 8
    return len(value) if isinstance(value, (str, bytes)) else 0


def check_product(left: Any, right: Any) -> None:
    """Refuse ``left * right`` if it were too large."""
    for value, count in ((left, right), (right, left)):
        if isinstance(count, int) and not isinstance(value, (int, float)):
            each = len(value) if isinstance(value, (str, bytes)) else weight_of(value)
            check(each * abs(count))


def check_power(left: Any, right: Any) -> None:
    """Refuse ``left ** right`` if it were too large."""
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _BITS:
        raise ValueError(f"it makes an integer of more than {_BITS} bits")


def check_call(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], *, method: bool = False
) -> None:
    """Refuse a call that could take too long or make too much at once.

    Args:
        name: of a filter, a test, a function or a method.
        args: with a method's owner, or what is filtered, first.
        kwargs: its other arguments.
        method: whether it is one.

    Raises:
        ValueError: naming it.
    """
    args = [value for value in args if not isinstance(value, _PASSED)]
    if method:
        _check_method(args[0], name)
    texts = [value for value in args if isinstance(value, (str, bytes))]
    counts = [abs(value) for value in (*args, *kwargs.values()) if isinstance(value, int)]
    if name in _WITH_WIDTHS and counts and max(counts) > _WIDEST:
        raise ValueError(f"{name} of {_shown(max(counts))}")
    if name in _ONE_BY_ONE and args and isinstance(args[0], (str, bytes)):
        check(_ITEM * len(args[0]))
    if (most := _AT_MOST.get(name)) and weight_of(args) > most:
        raise ValueError(f"{name} of more than {most} characters")
    own = (method and _CHECKS.get("." + name)) or _CHECKS.get(name)
    if own is not None and args:
        own(args, kwargs, texts, [1, *counts])


def _check_method(owner: Any, name: str) -> None:
    if isinstance(owner, type):
        raise ValueError(f"{name} is not available")
    for kind, known in _METHODS.items():
        if isinstance(owner, kind) and name not in known:
            raise ValueError(f"{name} is not available")


def check_keys(keys: Iterable[Any]) -> None:
    """Refuse keys of a dictionary that may all have one hash.

    Raises:
        ValueError: they are more than 1,000 tuples, or integers that are huge.
    """
    doubtful = 0
    for key in ticking(keys):
        if not isinstance(key, (str, float)) and key is not None:
            doubtful += not isinstance(key, int) or key.bit_length() > _KEY_BITS
        if doubtful > _COLLIDING:
            raise ValueError(f"a dictionary of more than {_COLLIDING} keys that may collide")


def check_format(text: str | bytes, values: Any) -> None:
    """Refuse to fill a format if that made too much."""
    if isinstance(text, bytes):
        raise ValueError("formats of bytes are not available")
    if _WIDTH.search(text):
        raise ValueError(f"a width in the format {text[:40]!r}")
    places = text.count("{") + text.count("%")
    check(len(text) + places * weight_of(values) + sum(map(int, _NUMBER.findall(text))))


def _format(args: Any, kwargs: Any, texts: Any, counts: Any) -> None:
    if texts:
        check_format(texts[0], [*args[1:], *kwargs.values()])


def _filled(args: Any, kwargs: Any, texts: Any, counts: Any) -> None:
    """Of ``str.format``, whose widths may themselves be filled in."""
    _format(args, kwargs, texts, counts)
    if any(spec and "{" in spec for _, _, spec, _ in Formatter().parse(args[0])):
        raise ValueError(f"a width in the format {args[0][:40]!r}")


def _replace(args: Any, kwargs: Any, texts: Any, counts: Any) -> None:
    if len(texts) > 2:
        check(len(texts[0]) * (1 + len(texts[2]) // max(1, len(texts[1]))))


def _join(args: Any, kwargs: Any, texts: Any, counts: Any) -> None:
    _check_joined(args[0], kwargs.get("d", args[1] if len(args) > 1 else ""))


def _join_method(args: Any, kwargs: Any, texts: Any, counts: Any) -> None:
    if len(args) > 1:
        _check_joined(args[1], args[0])


def _check_joined(values: Any, between: Any) -> None:
    items = len(values) if hasattr(values, "__len__") else 0
    check(weight_of(values) + items * (_ITEM + _length(between)))


def _indented(args: Any, kwargs: Any, texts: Any, counts: Any) -> None:
    check(weight_of(args) * max([*counts, *map(len, texts[1:])]))


def _tabs(args: Any, kwargs: Any, texts: Any, counts: Any) -> None:
    if texts:
        check(len(texts[0]) + texts[0].count("\t") * max([8, *counts]))


def _wrapped(args: Any, kwargs: Any, texts: Any, counts: Any) -> None:
    """Python takes a long word apart by copying its rest."""
    width = kwargs.get("width", args[1] if len(args) > 1 else 79)
    length = len(str(args[0]))
    if not isinstance(width, int) or length * length > max(1, width) << 28 or length > 1 << 17:
        raise ValueError(f"wordwrap of {length} characters to {_shown(width)}")
    check(length * max([1, *map(len, texts[1:])]))


def _sorted(args: Any, kwargs: Any, texts: Any, counts: Any) -> None:
    if hasattr(args[0], "__len__") and len(args[0]) > _SORTED:
        raise ValueError(f"it sorts more than {_SORTED} items")


def _backwards(args: Any, kwargs: Any, texts: Any, counts: Any) -> None:
    if len(texts) > 1 and len(texts[0]) * len(texts[1]) > _SEARCHED:
        raise ValueError(f"it looks for {len(texts[1])} characters in {len(texts[0])} from behind")


def _codec(args: Any, kwargs: Any, texts: Any, counts: Any) -> None:
    names = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, str)]
    for name in names:
        if name.lower().replace("_", "-") not in _CODECS | _CODEC_ERRORS:
            raise ValueError(f"the encoding {name[:40]!r} is not available")


def _dictionary(args: Any, kwargs: Any, texts: Any, counts: Any) -> None:
    for value in args:
        if isinstance(value, (list, tuple)):
            check_keys(item[0] if isinstance(item, (list, tuple)) and item else 0 for item in value)


def _layout(args: Any, kwargs: Any, texts: Any, counts: Any) -> None:
    if any(len(text) > _LAYOUT for text in (*texts, *kwargs.values()) if isinstance(text, str)):
        raise ValueError(f"a date's layout of more than {_LAYOUT} characters")


_CHECKS: dict[str, Any] = {
    "format": _format,
    ".format": _filled,
    ".format_map": _filled,
    "replace": _replace,
    "join": _join,
    ".join": _join_method,
    "indent": _indented,
    "tojson": _indented,
    "expandtabs": _tabs,
    "wordwrap": _wrapped,
    "sort": _sorted,
    "groupby": _sorted,
    "dictsort": _sorted,
    "encode": _codec,
    "decode": _codec,
    "dict": _dictionary,
    "strftime_now": _layout,
    **dict.fromkeys(_BACKWARDS, _backwards),
}


def _shown(value: Any) -> str:
    big = isinstance(value, int) and value.bit_length() > _KEY_BITS
    return "a huge number" if big else f"{value!r:.40}"
