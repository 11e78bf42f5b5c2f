"""Values of options that come as text: from a command line, or from a request that has no types."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

_LONGEST_NAME = 64  # of a field that is named in an error


class TwiceError(ValueError):
    """An object has a field twice.

    Args:
        name: the field's.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"the field {name[:_LONGEST_NAME]!r} is there twice")


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, for ``object_pairs_hook``: which of two values would be meant?

    Raises:
        TwiceError: it has a field twice.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise TwiceError(name)
    return made


def parsed_json(name: str, value: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON; as in all of these functions, naming the option.
    """
    try:
        return json.loads(value, object_pairs_hook=once)
    except TwiceError as error:
        raise ValueError(f"{name}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not JSON: {error}") from error


def whole(name: str, value: Any) -> int:
    """A whole number."""
    try:
        if not isinstance(value, bool) and int(value) == float(value):
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{name} {value!r}: need a whole number")


def number(name: str, value: Any) -> float:
    """Any number."""
    try:
        if not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{name} {value!r}: need a number")


def truth(name: str, value: Any) -> bool:
    """``true`` or ``false``."""
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return bool(value == "true")
    raise ValueError(f"{name} {value!r}: need true or false")


def text(name: str, value: Any) -> str:
    """A text."""
    if isinstance(value, str):
        return value
    raise ValueError(f"{name} {value!r}: need text")


def texts(name: str, value: Any) -> list[str]:
    """One text, or a list of them, as JSON if it is a text itself."""
    if isinstance(value, str) and value.startswith("["):
        value = parsed_json(name, value)
    return [text(name, one) for one in (value if isinstance(value, list) else [value])]


def schema(name: str, value: Any) -> Any:
    """A JSON schema, or its text."""
    if isinstance(value, str | bool | dict):
        return value
    raise ValueError(f"{name} {value!r}: need a JSON schema")


def table(name: str, value: Any) -> dict[str, Any]:
    """An object, or its JSON."""
    if isinstance(value, str):
        value = parsed_json(name, value)
    if not isinstance(value, dict):
        raise ValueError(f"{name} {value!r}: need a JSON object")
    return value


def by_number(name: str, value: Any, each: Callable[[str, Any], T]) -> dict[int, T]:
    """An object whose names are whole numbers, or its JSON."""
    if isinstance(value, str):
        value = parsed_json(name, value)
    if not isinstance(value, dict):
        raise ValueError(f"{name} {value!r}: need an object from token ids to numbers")
    made = {whole(name, key): each(name, one) for key, one in value.items()}
    if len(made) < len(value):  # such as 5 and 05
        [(twice, _)] = Counter(whole(name, key) for key in value).most_common(1)
        raise ValueError(f"{name}: {twice} is there twice")
    return made


def biases(name: str, value: Any) -> Mapping[int, float]:
    """Numbers by token id."""
    return by_number(name, value, number)


def positions(name: str, value: Any) -> Mapping[int, int]:
    """Token ids by position in the answer."""
    return by_number(name, value, whole)


def wholes(name: str, value: Any) -> list[int]:
    """A list of token ids: JSON, or numbers with commas between them."""
    if isinstance(value, str):
        commas = re.fullmatch(r"[\s\d,+-]+", value)
        if not commas and not value.lstrip().startswith("["):
            raise ValueError(f"{name} {value!r}: need token ids, such as 1,2,3, or a JSON list")
        value = value.split(",") if commas else parsed_json(name, value)
    if not isinstance(value, list):
        raise ValueError(f"{name} {value!r}: need a list of token ids")
    return [whole(name, one) for one in value]


def whole_lists(name: str, value: Any) -> list[list[int]]:
    """A list of lists of token ids, or its JSON."""
    if isinstance(value, str):
        value = parsed_json(name, value)
    if not isinstance(value, list):
        raise ValueError(f"{name} {value!r}: need a list of lists of token ids")
    return [wholes(name, one) for one in value]
