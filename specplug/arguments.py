"""Arguments are checked before any work, against the annotations that document them.

A new option of a checked dataclass, ``TypedDict`` or function needs its annotation, and no more; a
row in :func:`check_ranges`'s table if not every value of its type will do. A value of a wrong type
or outside its range is a ``ValueError``, an unknown keyword a ``TypeError`` as Python's own.
"""

from __future__ import annotations

import difflib
import inspect
import os
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import fields
from functools import cache, wraps
from pathlib import Path
from reprlib import Repr
from typing import (
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

Range = tuple[str, str, bool]
"""An option's name, the values that it may have in words, and whether it has one of them."""

_NUMBERS: Mapping[Any, tuple[type, ...]] = {
    int: (int, np.integer),
    float: (float, int, np.floating, np.integer),
    bool: (bool, np.bool_),
}
_CALLED = {
    int: "a whole number", float: "a number", bool: "True or False", str: "text",
    bytes: "bytes", Path: "a path", type(None): "None", Any: "anything",
}  # fmt: skip
_KINDS: Mapping[Any, str] = {int: "iu", float: "iuf", bool: "b"}  # of an array's elements
_shortener = Repr()
_shortener.maxstring = _shortener.maxother = 80


def shown(value: object) -> str:
    """A value as an error names it: never long, never a failure itself."""
    try:
        return " ".join(_shortener.repr(value).split())
    except Exception:  # a stranger's __repr__
        return f"a {type(value).__name__}"


# --- unknown keywords -------------------------------------------------------------------------


def check_keywords(
    call: str,
    given: Iterable[str],
    known: Collection[str],
    *,
    elsewhere: Mapping[str, str] | None = None,
) -> None:
    """Refuse keywords that nobody reads.

    Args:
        call: what was called.
        given: the keywords.
        known: those that it has.
        elsewhere: what to do instead, by keywords that belong to another call.

    Raises:
        TypeError: naming the first unknown one, and the nearest that is known.
    """
    for name in given:
        if name in known:
            continue
        if elsewhere and name in elsewhere:
            raise TypeError(f"{call}() has no argument {name!r}: {elsewhere[name]}")
        near = difflib.get_close_matches(name, [*known, *(elsewhere or ())], n=1, cutoff=0.5)
        if not near:
            remedy = f"it has {', '.join(sorted(known))}"
        elif elsewhere and near[0] in elsewhere:
            remedy = f"did you mean {near[0]!r}? {elsewhere[near[0]]}"
        else:
            remedy = f"did you mean {near[0]!r}?"
        raise TypeError(f"{call}() has no argument {name!r}: {remedy}")


# --- values -----------------------------------------------------------------------------------


def check_value(name: str, value: object, annotation: Any) -> None:
    """Refuse a value that is not of an annotation.

    ``int`` and ``float`` take numpy's numbers, too, and no ``bool``; a ``Sequence`` takes sets and
    arrays of one dimension, and no text unless text is what is annotated.

    Raises:
        ValueError: naming the value, or the entry of it, and what it must be.
    """
    found = _fault(name, value, annotation)
    if found is not None:
        where, what, wanted = found
        raise ValueError(f"{where} {shown(what)}: it must be {wanted}")


def _fault(name: str, value: Any, hint: Any) -> tuple[str, object, str] | None:
    """The name of what is wrong, its value, and what it must be."""
    if _accepts(value, hint):
        return None
    for option in _options(hint):  # is it one entry that is wrong?
        if get_origin(option) in (Sequence, list, tuple) and _is_sequence(value):
            for index, item in enumerate(value):
                found = _fault(f"{name}[{index}]", item, get_args(option)[0])
                if found is not None:
                    return found
        if get_origin(option) in (Mapping, dict) and isinstance(value, Mapping):
            of_key, of_value = get_args(option)
            for key, item in value.items():
                found = _fault(f"{name}: key", key, of_key)
                found = found or _fault(f"{name}[{shown(key)}]", item, of_value)
                if found is not None:
                    return found
    return name, value, describe(hint)


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_sequence(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return bool(value.ndim == 1)
    return isinstance(value, Sequence | Set) and not isinstance(value, str | bytes | bytearray)


def _accepts(value: Any, hint: Any) -> bool:
    if hint is Any or isinstance(hint, TypeVar):
        return True
    if hint is None or hint is type(None):
        return value is None
    if hint in _NUMBERS:
        return isinstance(value, _NUMBERS[hint]) and (hint is bool or not isinstance(value, bool))
    if hint is Path:
        return isinstance(value, os.PathLike)
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_accepts(value, option) for option in inner)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in inner)
    if origin in (Sequence, list):
        return _is_sequence(value) and _all(value, inner[0])
    if origin is tuple:
        if len(inner) == 2 and inner[1] is Ellipsis:
            return _is_sequence(value) and _all(value, inner[0])
        return (
            isinstance(value, tuple)
            and len(value) == len(inner)
            and all(map(_accepts, value, inner))
        )
    if origin in (Mapping, dict):
        return isinstance(value, Mapping) and all(
            _accepts(key, inner[0]) and _accepts(item, inner[1]) for key, item in value.items()
        )
    if is_typeddict(hint):
        return isinstance(value, Mapping)
    kind = origin or hint
    if kind is Callable or kind is _CALLABLE:
        return callable(value)
    if kind is type:
        return isinstance(value, type)
    if not isinstance(kind, type) or _is_static(kind):
        return True  # a NewType, or a protocol that cannot be asked for
    return isinstance(value, kind)


_CALLABLE = get_origin(Callable[..., Any])


def _all(value: Any, hint: Any) -> bool:
    if isinstance(value, np.ndarray) and hint in _KINDS:
        return value.dtype.kind in _KINDS[hint]
    if hint is int and all(type(item) is int for item in value):  # quick, where there are many
        return True
    return all(_accepts(item, hint) for item in value)


def _is_static(kind: type) -> bool:
    return bool(getattr(kind, "_is_protocol", False)) and not getattr(
        kind, "_is_runtime_protocol", False
    )


def describe(hint: Any) -> str:
    """What an annotation takes, in words."""
    if hint in _CALLED:
        return _CALLED[hint]
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _either([*dict.fromkeys(map(describe, inner))])
    if origin is Literal:
        return _either([str(value) for value in inner])
    if origin in (Sequence, list, tuple):
        return f"a sequence of {describe(inner[0])}" if inner else "a sequence"
    if origin in (Mapping, dict):
        return f"a mapping of {describe(inner[0])} to {describe(inner[1])}"
    if origin is _CALLABLE:
        return "callable"
    return f"a {getattr(origin or hint, '__name__', hint)}"


def _either(words: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


# --- dataclasses and functions ----------------------------------------------------------------


def check_types(options: Any) -> None:
    """Check the types of a dataclass's values, from its ``__post_init__``.

    Raises:
        ValueError: naming the field, its value and what it must be.
    """
    kind: Any = type(options)
    for name, hint in _hints(kind).items():
        if not _accepts(getattr(options, name), hint):
            check_value(name, getattr(options, name), hint)


def check_ranges(options: Any, ranges: Iterable[Range]) -> None:
    """Refuse values outside their range.

    Args:
        options: what has the values as attributes.
        ranges: a row a value.

    Raises:
        ValueError: naming the value, and its range.
    """
    for name, allowed, good in ranges:
        if not good:
            raise ValueError(f"{name} {shown(getattr(options, name))}: it must be {allowed}")


def check_options(
    call: str, given: Mapping[str, Any], known: Any, *, elsewhere: Mapping[str, str] | None = None
) -> None:
    """Check keywords against the fields of a dataclass or a ``TypedDict``.

    Raises:
        TypeError: a keyword is no field.
        ValueError: a value is not of its field's annotation.
    """
    hints = _hints(known)
    check_keywords(call, given, hints, elsewhere=elsewhere)
    for name, value in given.items():
        check_value(name, value, hints[name])


@cache
def _hints(kind: Any) -> dict[str, Any]:
    found = get_type_hints(kind)
    if is_typeddict(kind):
        return found
    return {field.name: found[field.name] for field in fields(kind) if field.init}


def checked(
    *, elsewhere: Mapping[str, str] | None = None, kept: Collection[str] = ()
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a function's arguments checked at the call, against its annotations.

    ``**options: Unpack[SomeTypedDict]`` are checked as its fields.

    Args:
        elsewhere: see :func:`check_keywords`.
        kept: arguments whose values the function checks itself.

    A call raises ``TypeError`` for an unknown keyword and ``ValueError`` for a value of a wrong
    type; of a generator function at the call, too, and not at its first token.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            _check_call(function, kept, elsewhere, args, kwargs)
            return function(*args, **kwargs)

        return call

    return decorate


def _check_call(
    function: Callable[..., Any],
    kept: Collection[str],
    elsewhere: Mapping[str, str] | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    places, named, any_name = _parameters(function)
    hints = {name: hint for name, hint in named.items() if name not in kept}
    if not any_name:
        called = function.__name__
        if called == "__init__":
            called = type(args[0]).__name__
        check_keywords(called, kwargs, named.keys() - {"self", "cls"}, elsewhere=elsewhere)
    for name, value in (*zip(places, args, strict=False), *kwargs.items()):
        if name in hints and not _accepts(value, hints[name]):
            check_value(name, value, hints[name])


@cache
def _parameters(function: Callable[..., Any]) -> tuple[tuple[str, ...], dict[str, Any], bool]:
    """Names of positional arguments, annotations of all, and whether any other keyword goes."""
    hints = get_type_hints(function)
    places: list[str] = []
    named: dict[str, Any] = {}
    any_name = False
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints.get(name, Any)
        if parameter.kind is parameter.VAR_KEYWORD:
            unpacked = get_args(hint)
            if unpacked and is_typeddict(unpacked[0]):
                named |= _hints(unpacked[0])
            else:
                any_name = True
            continue
        if parameter.kind is not parameter.KEYWORD_ONLY:
            places.append(name)
        if parameter.kind is not parameter.VAR_POSITIONAL:
            named[name] = hint
    return tuple(places), named, any_name
