"""Chat templates: Jinja from strangers, rendered without access to anything, in bounded time.

Jinja's sandbox keeps a template from reaching out. It does not keep it from never ending, from
filling memory or from keeping Python's lock, so that nothing else runs: loops in loops,
``'x' * 10**10``, ``9**9**9``, lists of lists that double, a word of a million letters wrapped. So
here every loop, call, filter, test, operator, literal and output goes through the environment,
which looks at the clock and applies :mod:`specplug.template_bounds`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from jinja2.utils import Namespace, concat
from jinja2.visitor import NodeTransformer

from specplug.library_errors import LibraryError
from specplug.template_bounds import (
    LONGEST_SOURCE,
    bounded,
    check,
    check_call,
    check_format,
    check_power,
    check_product,
    tick,
    ticking,
    weighed,
)

_REFUSED = "the chat template refuses these messages"
_LONGEST_ERROR = 500  # characters of what a template raises
_LARGEST_LITERAL = 1000  # entries of a dictionary in the template


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
        ValueError: it does not parse, or is longer than any template is.
    """
    if len(source) > LONGEST_SOURCE:
        raise ValueError(
            f"the chat template does not parse: it has {len(source)} characters, and may have "
            f"{LONGEST_SOURCE}"
        )
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,  # it computes what is constant, without bounds
        extensions=["jinja2.ext.loopcontrols", _Generation],
    )
    try:
        parsed = environment.parse(source)
        guarded = _Guard().visit(parsed)
        variables = find_undeclared_variables(guarded) - environment.globals.keys()
        return ChatTemplate(environment.from_string(guarded), frozenset(variables))
    except Exception as error:  # nested too deeply, for one
        raise ValueError(f"the chat template does not parse: {error}") from error


def render_template(
    template: ChatTemplate, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
) -> str:
    """The text of a conversation.

    Raises:
        ValueError: the template refuses the messages, fails, or does not keep within its bounds.
    """
    # As in transformers, what a chat does not have is None.
    known = {"tools": None, "documents": None, **variables}
    try:
        with bounded([messages, known]):
            return template.jinja.render(messages=messages, **known)
    except Exception as error:  # a template can raise anything
        said = str(error)
        if len(said) > _LONGEST_ERROR:
            said = said[: _LONGEST_ERROR - 1] + "…"
        if isinstance(error, RefusedMessagesError):  # its author's words, for whoever asks
            raise ValueError(f"{_REFUSED}: {said}") from error
        raise LibraryError(_REFUSED, said) from error


class _Generation(Extension):
    """``{% generation %}``, which marks the assistant's words for training, and changes nothing."""

    tags = {"generation"}  # noqa: RUF012  (as Jinja declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """Jinja's, whose text is weighed: the only value that can change after it was made."""

    def __repr__(self) -> str:
        tick()
        made: str = weighed(super().__repr__())
        return made


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.globals.update(
            raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=_Namespace
        )
        del self.globals["lipsum"]
        self.filters |= {"tojson": _to_json, "sum": _sum}
        for functions in (self.filters, self.tests):
            for name in list(functions):
                functions[name] = _guarded(name, functions[name])

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        tick()
        if operator == "*":
            check_product(left, right)
        elif operator == "**":
            check_power(left, right)
        elif operator == "%" and isinstance(left, (str, bytes)):
            check_format(left, right)
        return weighed(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Called for each call of a function, a method or a macro."""
        if getattr(function, "__self__", None) is self:  # what the guard put there
            return function(*args)
        tick()
        if function is not self.globals["range"]:  # the sandbox bounds it
            args = tuple(map(_as_list, args))
            method = getattr(function, "__wrapped__", function)  # the sandbox's own format
            name, owner = getattr(method, "__name__", ""), getattr(method, "__self__", None)
            if owner is None:
                check_call(name.lstrip("_"), args, kwargs)
            else:
                check_call(name, (owner, *args), kwargs, method=True)
        return weighed(super().call(context, function, *args, **kwargs))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """``a[b]``."""
        tick()
        return super().getitem(obj, argument)

    def counted(self, values: Iterable[Any]) -> Iterator[Any]:
        """The values of a loop."""
        return ticking(values)

    def passed(self, values: Iterable[Any]) -> list[Any]:
        """The arguments of ``function(*values)``."""
        if isinstance(values, (str, bytes)):
            check(8 * len(values))
        made: list[Any] = weighed(list(ticking(values)))
        return made

    def joined(self, *values: Any) -> str:
        """``a ~ b``."""
        tick()
        return self.concat(map(str, values))

    def made(self, value: Any) -> Any:
        """A list, tuple or dictionary in the template, or a slice."""
        tick()
        return weighed(value)

    def compared(self, value: Any) -> Any:
        """The left of a comparison."""
        tick()
        return value

    def shown(self, value: Any) -> str:
        """``{{ value }}``."""
        tick()
        made: str = weighed(value if isinstance(value, str) else str(value))
        return made

    @staticmethod
    def concat(texts: Iterable[str]) -> str:
        """What macros, blocks and the whole are put together with."""
        total, kept = 0, []
        for text in texts:
            total += len(text)
            check(total)
            kept.append(text)
        made: str = weighed(concat(kept))
        return made


class _Guard(NodeTransformer):
    """Send whatever a template does through the environment."""

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        self.generic_visit(node)
        match node:
            case nodes.For():
                node.iter = _call("counted", [node.iter])
            case nodes.Concat():
                return _call("joined", node.nodes)
            case nodes.Dict() if len(node.items) > _LARGEST_LITERAL:
                raise ValueError(f"a dictionary of more than {_LARGEST_LITERAL} entries")
            case nodes.List() | nodes.Dict() | nodes.Tuple(ctx="load"):
                return _call("made", [node])
            case nodes.Getitem(arg=nodes.Slice(), ctx="load"):
                return _call("made", [node])
            case nodes.Compare():
                node.expr = _call("compared", [node.expr])
            case nodes.Output():
                node.nodes = [_shown(child) for child in node.nodes]
            case nodes.Call() | nodes.Filter() | nodes.Test() if node.dyn_args is not None:
                node.dyn_args = _call("passed", [node.dyn_args])
        return node


def _call(method: str, arguments: list[Any]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None)


def _shown(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.TemplateData) else _call("shown", [node])


def _guarded(name: str, function: Any) -> Callable[..., Any]:
    @wraps(function)  # with the mark that says whether it wants the environment first
    def guarded(*args: Any, **kwargs: Any) -> Any:
        tick()
        args = tuple(map(_as_list, args))
        check_call(name, args, kwargs)
        made = weighed(function(*args, **kwargs))
        return ticking(made) if isinstance(made, Iterator) else made

    return guarded


def _as_list(value: Any) -> Any:
    """What a filter gives one by one, all at once, so that it can be weighed."""
    return weighed(list(ticking(value))) if isinstance(value, Iterator) else value


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
