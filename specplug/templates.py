"""Chat templates: Jinja from strangers, rendered without access to anything, in bounded time.

Jinja's sandbox keeps a template from reaching out. It does not keep it from never ending, or from
filling memory: loops in loops, ``'x' * 10**10``, ``9**9**9``, lists of lists that double. So here
every loop, call, filter, test, operator and literal looks at the clock, whatever it makes is
weighed, and what multiplies is weighed before it is made.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

from jinja2 import Environment, Template, nodes, pass_environment
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import concat
from jinja2.visitor import NodeTransformer

SECONDS = 2.0
"""A template may take; real ones take a thousandth."""
LARGEST = 1 << 24
"""Characters and items a value may have, those of its items included."""
_WIDEST = 10_000
_WITH_WIDTHS = {"batch", "center", "expandtabs", "indent", "ljust", "rjust", "round", "slice"} | {
    "to_bytes",
    "tojson",
    "truncate",
    "wordwrap",
    "zfill",
}
_WIDTH = re.compile(r"\d{5}|\*")  # in a format
_REFUSED = ("translate",)  # it can multiply without end

_deadline: ContextVar[float] = ContextVar("deadline")


class RefusedMessagesError(ValueError):
    """The template itself says, by raise_exception, that it has no place for a conversation."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template, ready to be rendered."""

    jinja: Template
    variables: frozenset[str]
    """The names that it reads and does not set itself."""


def compile_template(source: str) -> ChatTemplate:
    """A template as transformers sets it up for chats; see :func:`render_template`.

    Raises:
        ValueError: it does not parse.
    """
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _Generation],
    )
    try:
        parsed = environment.parse(source)
        variables = find_undeclared_variables(parsed) - environment.globals.keys()
        made = environment.from_string(_Guard().visit(parsed))
        return ChatTemplate(made, frozenset(variables))
    except Exception as error:  # nested too deeply, for one
        raise ValueError(f"the chat template does not parse: {error}") from error


def render_template(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
) -> str:
    """The text of a conversation.

    Raises:
        ValueError: the template refuses the messages, fails, or does not keep within its bounds.
    """
    token = _deadline.set(time.monotonic() + SECONDS)
    try:
        # As in transformers, what a chat does not have is None.
        known = {"tools": None, "documents": None, **variables}
        return template.jinja.render(messages=messages, **known)
    except Exception as error:  # a template can raise anything
        raise ValueError(f"the chat template refuses these messages: {error}") from error
    finally:
        _deadline.reset(token)


class _Generation(Extension):
    """``{% generation %}``, which marks the assistant's words for training, and changes nothing."""

    tags = {"generation"}  # noqa: RUF012  (as Jinja declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "*", "**", "%"])  # those that make things larger

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        del self.globals["lipsum"]
        self.filters |= {"tojson": _to_json, "sum": _sum}
        for functions in (self.filters, self.tests):
            for name in list(functions):
                functions[name] = _guarded(name, functions[name])

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _tick()
        if operator == "*":
            _check(max(_weight(left) * _count(right), _weight(right) * _count(left)))
        elif operator == "**":
            _check(_count(left).bit_length() * _count(right))
        elif operator == "%" and isinstance(left, str):
            _check_format(left, right)
        return _weighed(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Called for each call of a function, a method or a macro."""
        _tick()
        if function is not self.globals["range"]:  # the sandbox bounds it
            args = tuple(map(_as_list, args))
            method = getattr(function, "__wrapped__", function)  # the sandbox's own format
            owner = getattr(method, "__self__", "")
            _check_call(getattr(method, "__name__", ""), (owner, *args), kwargs)
        return _weighed(super().call(context, function, *args, **kwargs))

    def counted(self, values: Iterable[Any]) -> Iterator[Any]:
        """The values of a loop."""
        for value in values:
            _tick()
            yield value

    def joined(self, *values: Any) -> str:
        """``a ~ b``."""
        return self.concat(map(str, values))

    def made(self, value: Any) -> Any:
        """A list, tuple or dictionary in the template."""
        _tick()
        return _weighed(value)

    @staticmethod
    def concat(texts: Iterable[str]) -> str:
        """What macros, blocks and the whole are put together with."""
        return concat(_weighed(list(texts)))


class _Guard(NodeTransformer):
    """Send loops, concatenations and literals through the environment."""

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        self.generic_visit(node)
        match node:
            case nodes.For():
                node.iter = _call("counted", [node.iter])
            case nodes.Concat():
                return _call("joined", node.nodes)
            case nodes.List() | nodes.Dict() | nodes.Tuple(ctx="load"):
                return _call("made", [node])
        return node


def _call(method: str, arguments: list[Any]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None)


def _guarded(name: str, function: Any) -> Callable[..., Any]:
    @wraps(function)  # with the mark that says whether it wants the environment first
    def guarded(*args: Any, **kwargs: Any) -> Any:
        _tick()
        args = tuple(map(_as_list, args))
        _check_call(name, args, kwargs)
        return _weighed(function(*args, **kwargs))

    return guarded


def _check_call(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse a call that could make too much at once."""
    if name in _REFUSED:
        raise ValueError(f"{name} is not available")
    texts = [value for value in args if isinstance(value, str)]
    counts = [abs(value) for value in (*args, *kwargs.values()) if isinstance(value, int)]
    if name in _WITH_WIDTHS and counts and max(counts) > _WIDEST:
        raise ValueError(f"{name} of {max(counts)}")
    if name in ("format", "format_map") and texts:
        _check_format(texts[0], [*args[1:], *kwargs.values()])
    elif name == "replace" and len(texts) > 2:
        _check(len(texts[0]) * (1 + len(texts[2]) // max(1, len(texts[1]))))
    elif name == "join":
        _check(sum(map(_weight, args)) + sum(map(len, texts)) * max(map(_length, args)))
    elif name in ("indent", "tojson"):
        _check(_weight(args) * max([1, *counts, *map(_length, texts[1:])]))


def _as_list(value: Any) -> Any:
    """What a filter gives one by one, all at once, so that it can be weighed."""
    return list(value) if isinstance(value, Iterator) else value


def _tick() -> None:
    if time.monotonic() > _deadline.get():
        raise ValueError(f"it takes longer than {SECONDS:.0f} seconds")


def _check(weight: int) -> None:
    if weight > LARGEST:
        raise ValueError(f"it makes something of more than {LARGEST} characters or items")


def _check_format(text: str, values: Any) -> None:
    if _WIDTH.search(text):
        raise ValueError(f"a width in the format {text[:40]!r}")
    _check(len(text) + (text.count("{") + text.count("%")) * _weight(values))


def _weighed(value: Any) -> Any:
    _check(_weight(value))
    return value


def _weight(value: Any) -> int:
    """Characters and items, items of items included; just over :data:`LARGEST` if more."""
    total, rest = 0, [value]
    while rest and total <= LARGEST:
        item = rest.pop()
        total += 1 + _length(item)
        if isinstance(item, dict):
            rest += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            rest += item
        if len(rest) > 1000:
            _tick()
    return total


def _length(value: Any) -> int:
    if isinstance(value, int):
        return value.bit_length()
    return len(value) if isinstance(value, (str, bytes, list, tuple, dict)) else 0


def _count(value: Any) -> int:
    return abs(value) if isinstance(value, int) else 0


def _to_json(
    value: Any,
    ensure_ascii: bool = False,  # transformers' order of arguments, which is not Jinja's
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


@pass_environment
def _sum(
    environment: Environment, values: Iterable[Any], attribute: str | None = None, start: Any = 0
) -> Any:
    """Jinja's filter of numbers alone: lists that are added could double without end."""
    chosen = list(values)
    if attribute is not None:
        chosen = list(map(make_attrgetter(environment, attribute), chosen))
    if not all(isinstance(value, (int, float)) for value in (start, *chosen)):
        raise ValueError("sum adds numbers only")
    return sum(chosen, start)


def _strftime_now(layout: str) -> str:
    return datetime.now().astimezone().strftime(layout)


def _raise_exception(message: str) -> NoReturn:
    raise RefusedMessagesError(message)
